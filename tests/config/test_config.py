"""The options of a run, as users of TRL and of this package write them."""

import ast
import dataclasses
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raydpo import config as options_of
from raydpo.config import (
    HINTS,
    SECTIONS,
    JobConfig,
    OptimConfig,
    from_flat,
    parse,
    to_flat,
    to_yaml,
)
from raydpo.errors import ConfigError

ROOT = Path(__file__).parents[2]
TRL_COMMAND = (
    "--model_name_or_path Qwen/Qwen2-0.5B-Instruct --dataset_name trl-lib/ultrafeedback_binarized "
    "--num_train_epochs 1 --logging_steps 25 --output_dir Qwen2-0.5B-DPO"
)


def test_a_command_of_trl_is_valid_unchanged() -> None:
    parsed = parse(TRL_COMMAND.split())
    config = parsed.job
    assert config.model.model_name_or_path == "Qwen/Qwen2-0.5B-Instruct"
    assert config.data.dataset_name == ("trl-lib/ultrafeedback_binarized",)
    assert config.optim.num_train_epochs == 1.0
    assert config.run.logging_steps == 25
    assert config.run.output_dir == "Qwen2-0.5B-DPO"
    assert parsed.explicit == {word[2:] for word in TRL_COMMAND.split() if word.startswith("--")}


def test_another_command_of_trl_is_valid_unchanged() -> None:
    config = parse(
        "--model_name_or_path gpt2 --dataset_name data --learning_rate 5.0e-6 --per_device_train_batch_size 2 "
        "--max_steps 1000 --gradient_accumulation_steps 8 --gradient_checkpointing --eval_strategy steps "
        "--eval_steps 50 --bf16 --use_peft --lora_r 32 --lora_alpha 16 --lora_target_modules all-linear "
        "--loss_type sigmoid --report_to wandb".split()
    ).job
    assert config.optim.learning_rate == 5e-6
    assert (config.optim.bf16, config.optim.gradient_checkpointing, config.adapter.use_peft) == (True, True, True)
    assert config.adapter.lora_target_modules == ()  # all linear layers is the default
    assert config.run.report_to == ("wandb",)
    assert config.global_batch(num_workers=4) == 2 * 8 * 4


def test_flags_override_the_file(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("learning_rate: 1e-5\nbeta: 0.3\neval_strategy: no\n", encoding="utf-8")
    parsed = parse(["--config", str(path), "--beta", "0.5"])
    config = parsed.job
    assert (config.optim.learning_rate, config.loss.beta, config.optim.eval_strategy) == (1e-5, 0.5, "no")
    assert parsed.explicit == {"learning_rate", "beta", "eval_strategy"}


@pytest.mark.parametrize(
    "command",
    [
        "",
        TRL_COMMAND,
        "--eval_strategy no --save_strategy no --resume_from_checkpoint none --max_length none --bf16 false",
        "--dataset_name a.jsonl s3://b/part-{0,1}.jsonl --reference_label_selector raydpo-role=ref "
        "--worker_resources pool=0.5 --report_to wandb,tensorboard --run_name 007 --learning_rate 1e-7",
        "--output_dir läuft --warmup_steps 0.1 --eval_strategy steps",
        "--lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs num_decay_steps=20,decay_type=1-sqrt",
    ],
)
def test_the_written_yaml_repeats_the_run(tmp_path: Path, command: str) -> None:
    config = parse(command.split()).job
    path = tmp_path / "config.yaml"
    path.write_text(to_yaml(config), encoding="utf-8")
    again = parse(["--config", str(path)])
    assert again.job == config
    assert again.explicit == set(HINTS)


def test_the_written_yaml_is_read_the_same_by_other_parsers() -> None:
    read = yaml.safe_load(to_yaml(parse(["--eval_strategy", "no", "--dataset_name", "a", "b"]).job))
    assert list(read) == list(HINTS)
    assert (read["eval_strategy"], read["dataset_name"], read["beta"], read["bf16"]) == ("no", ["a", "b"], 0.1, None)


def test_flat_names_are_unique_and_complete() -> None:
    names = [field.name for section in SECTIONS.values() for field in dataclasses.fields(section)]
    assert sorted(names) == sorted(HINTS)
    assert list(to_flat(JobConfig())) == names
    assert from_flat(to_flat(JobConfig())) == JobConfig()
    assert [field.name for field in dataclasses.fields(JobConfig)] == list(SECTIONS)


def test_a_config_can_be_pickled_for_workers() -> None:
    config = parse(["--reference_label_selector", "raydpo-role=ref"]).job
    assert pickle.loads(pickle.dumps(config)) == config


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("--learning_rat 1", ["learning_rat ", "nearest is learning_rate"]),
        ("--beta 0", ["beta=0", "above 0"]),
        ("--label_smoothing 0.5", ["label_smoothing=0.5", "below 0.5"]),
        ("--max_steps 0", ["max_steps=0", "-1 or at least 1"]),
        ("--warmup_steps 1.5", ["warmup_steps=1.5", "whole number"]),
        ("--lr_scheduler_type reduce_lr_on_plateau", ["reduce_lr_on_plateau", "linear, cosine"]),
        ("--lr_scheduler_type cosine_with_min_lr", ["cosine_with_min_lr", "min_lr_rate", "set one of them"]),
        (
            "--lr_scheduler_type cosine_with_min_lr --lr_scheduler_kwargs min_lr=0,min_lr_rate=0.1",
            ["min_lr_rate", "set one of them"],
        ),
        ("--lr_scheduler_kwargs num_cycles=2", ["num_cycles", "linear does not take", "leave it out"]),
        ("--lr_scheduler_type cosine --lr_scheduler_kwargs num_cycle=2", ["num_cycle,", "takes num_cycles"]),
        ("--lr_scheduler_type cosine --lr_scheduler_kwargs num_cycles=two", ["num_cycles must be a number, not two"]),
        ("--lr_scheduler_type warmup_stable_decay", ["lr_scheduler_kwargs=unset", "num_decay_steps"]),
        (
            "--lr_scheduler_type warmup_stable_decay --lr_scheduler_kwargs num_decay_steps=2,decay_type=square",
            ["decay_type must be one of linear, cosine, 1-sqrt, not square"],
        ),
        (
            "--lr_scheduler_type polynomial --lr_scheduler_kwargs lr_end=1e-5",
            ["learning_rate=1e-06", "above 1e-05", "polynomial"],
        ),
        ("--zero_stage 4", ["zero_stage=4", "0, 1, 2, 3"]),
        ("--report_to wandb nowhere", ["report_to=wandb,nowhere", "tensorboard"]),
        ("--report_to none wandb", ["report_to=none,wandb", "leave none out"]),
        ("--bf16 --fp16", ["bf16=true", "fp16=true", "one of them"]),
        ("--dtype float32 --bf16", ["dtype=float32", "bf16=true"]),
        ("--dtype bfloat16 --fp16", ["dtype=bfloat16", "fp16=true"]),
        ("--dtype bfloat16 --bf16 false", ["dtype=bfloat16", "bf16=false"]),
        ("--max_length 64 --max_prompt_length 64", ["max_prompt_length=64", "max_length=64"]),
        ("--warmup_steps 10 --warmup_ratio 0.1", ["warmup_steps=10", "warmup_ratio=0.1", "one of them"]),
        ("--offload all --zero_stage 2", ["offload=all", "zero_stage", "3"]),
        ("--offload optimizer --zero_stage 0", ["offload=optimizer", "zero_stage", "1"]),
        ("--lr_scheduler_type polynomial --learning_rate 1e-8", ["learning_rate=1e-08", "polynomial"]),
        ("--model_adapter_name sft --lora_r 8", ["lora_r=8", "model_adapter_name=sft", "one of them"]),
        ("--model_adapter_name base", ["model_adapter_name=base", "use_peft"]),
        ("--ref_adapter_name sft --reference_free", ["ref_adapter_name=sft", "leave it out"]),
        ("--reference_quantization 8bit --loss_type orpo", ["reference_quantization=8bit", "leave it out"]),
        ("--sync_ref_model --reference_from_dataset", ["sync_ref_model=true", "leave it out"]),
        ("--sync_ref_model --reference_schedule staged", ["reference_schedule=staged", "sync_ref_model=true"]),
        ("--sync_ref_model --use_peft --reference_model other", ["reference_model=other", "use_peft"]),
        ("--sync_ref_model --ref_adapter_name sft", ["ref_adapter_name=sft", "merge it into its base"]),
        ("--sync_ref_model --use_peft --use_dora", ["sync_ref_model=true", "use_dora"]),
        ("--ref_model_mixup_alpha 1.5", ["ref_model_mixup_alpha=1.5", "at most 1"]),
        ("--share_prompts maybe", ["share_prompts=maybe", "true, false or try"]),
        ("--sample_weights twice", ["sample_weights=twice", "mean, as_given, ignore"]),
        ("--margin_from_scores exp", ["margin_from_scores=exp", "none, difference, log"]),
        ("--margin_from_scores log --loss_type ipo", ["margin_from_scores=log", "ipo has no margin", "simpo"]),
        ("--margin_scale 2 --loss_type orpo", ["margin_scale=2", "orpo has no margin", "leave it out"]),
        ("--loss_type rpo_bwd_kl --no_use_margins", ["use_margins=false", "rpo_bwd_kl", "margin_from_scores"]),
    ],
)
def test_wrong_options_are_refused_with_a_remedy(command: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(command.split())
    for word in words:
        assert word in str(caught.value)


@pytest.mark.parametrize(
    ("command", "value"),
    [
        ("", True),
        ("--share_prompts", True),
        ("--share_prompts yes", True),
        ("--no_share_prompts", False),
        ("--share_prompts 0", False),
        ("--share_prompts Try", "try"),
    ],
)
def test_share_prompts_is_true_false_or_try(command: str, value: bool | str) -> None:
    job = parse(command.split()).job
    assert job.model.share_prompts == value
    assert from_flat(to_flat(job)) == job


def test_direct_construction_is_validated_too() -> None:
    with pytest.raises(ConfigError, match="learning_rate=-1"):
        OptimConfig(learning_rate=-1)
    with pytest.raises(ConfigError, match="lerning_rate"):
        from_flat({"lerning_rate": 1e-6})


@pytest.mark.parametrize(
    ("words", "value"),
    [
        ([], "auto"),
        (["--resume_from_checkpoint", "true"], "auto"),
        (["--resume_from_checkpoint", "auto"], "auto"),
        (["--resume_from_checkpoint", "False"], "none"),
        (["--resume_from_checkpoint", "none"], "none"),
        (["--resume_from_checkpoint", "runs/a/checkpoint-10"], "runs/a/checkpoint-10"),
    ],
)
def test_resume_from_checkpoint_values(words: list[str], value: str) -> None:
    assert parse(words).job.run.resume_from_checkpoint == value
    assert from_flat({"resume_from_checkpoint": None}).run.resume_from_checkpoint == "none"
    assert from_flat({"resume_from_checkpoint": True}).run.resume_from_checkpoint == "auto"


def test_eval_steps_default_to_logging_steps() -> None:
    config = parse("--eval_strategy steps --logging_steps 7".split()).job
    assert config.optim.eval_steps == 7
    assert parse("--eval_strategy steps --eval_steps 3".split()).job.optim.eval_steps == 3
    assert parse("--eval_strategy epoch".split()).job.optim.eval_steps is None


def test_other_defaults_do_not_override_options_of_the_user() -> None:
    parsed = parse("--learning_rate 1e-5 --eval_strategy steps".split())
    with_demo_defaults = parsed.with_defaults({"learning_rate": 3e-4, "logging_steps": 5, "output_dir": "runs/demo"})
    job = with_demo_defaults.job
    assert (job.optim.learning_rate, job.run.logging_steps, job.run.output_dir) == (1e-5, 5, "runs/demo")
    assert job.optim.eval_steps == 5
    assert with_demo_defaults.explicit == parsed.explicit
    later = with_demo_defaults.with_defaults({"beta": 0.2}).job
    assert (later.loss.beta, later.run.logging_steps, later.run.output_dir) == (0.2, 5, "runs/demo")
    with pytest.raises(ConfigError, match="betta"):
        parsed.with_defaults({"betta": 0.2})


@pytest.mark.parametrize(
    ("command", "on_cpu", "on_gpu"),
    [
        ("", "float32", "bfloat16"),
        ("--bf16", "bfloat16", "bfloat16"),
        ("--no_bf16", "float32", "float32"),
        ("--fp16", "float16", "float16"),
        ("--dtype float32", "float32", "float32"),
        ("--dtype bfloat16", "bfloat16", "bfloat16"),
    ],
)
def test_precision_by_option_and_device(command: str, on_cpu: str, on_gpu: str) -> None:
    config = parse(command.split()).job
    assert (config.precision(gpu=False), config.precision(gpu=True)) == (on_cpu, on_gpu)


def test_the_seed_of_the_order_defaults_to_the_seed_of_the_run() -> None:
    assert OptimConfig(seed=1).order_seed == 1
    assert OptimConfig(seed=1, data_seed=0).order_seed == 0


def test_warmup_is_a_number_or_a_share_of_updates() -> None:
    assert OptimConfig().warmup_updates(100) == 0
    assert OptimConfig(warmup_steps=12).warmup_updates(100) == 12
    assert OptimConfig(warmup_steps=0.1).warmup_updates(101) == 11  # a share is rounded up, as in Hugging Face
    assert OptimConfig(warmup_ratio=0.1).warmup_updates(101) == 11


def test_every_count_and_size_has_a_unit() -> None:
    without_unit = {
        "adam_beta1",
        "adam_beta2",
        "adam_epsilon",
        "beta",
        "gradient_accumulation_steps",
        "label_smoothing",
    }
    without_unit |= {"learning_rate", "lora_alpha", "lora_dropout", "lora_r", "max_failures", "max_grad_norm", "seed"}
    without_unit |= {"warmup_ratio", "weight_decay", "zero_stage", "data_seed", "bco_running_mean", "cpo_alpha"}
    without_unit |= {"ref_model_mixup_alpha", "margin_scale", "dataset_seed", "test_split_size"}
    without_unit |= {
        "discopop_tau",
        "f_alpha_divergence_coef",
        "ld_alpha",
        "router_aux_loss_coef",
        "rpo_alpha",
        "simpo_gamma",
    }
    for section in SECTIONS.values():
        for field in dataclasses.fields(section):
            numeric = HINTS[field.name] in (int, float, int | None, float | None)
            assert bool(field.metadata["unit"]) == (numeric and field.name not in without_unit), field.name


def test_config_needs_neither_torch_nor_ray() -> None:
    code = "import sys, raydpo.config; print(sorted({'ray', 'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout.strip() == "[]"


def test_every_option_is_read_by_the_package() -> None:
    """Check that no option is unused: one that nothing reads would have no effect."""
    package = Path(options_of.__file__).parents[1]
    read = {
        node.attr
        for path in package.rglob("*.py")
        if path.parent.name != "config"
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Attribute)
    }
    for method, names in {
        "precision": {"dtype", "bf16", "fp16"},
        "reference_precision": {"reference_dtype"},
        "scores_reference": {"reference_from_dataset"},
        "warmup_updates": {"warmup_steps", "warmup_ratio"},
        "order_seed": {"data_seed"},
        "entries": {"datasets"},
        "smoothing": {"label_smoothing"},
        "needs_reference": {"reference_free"},
        "global_batch": {"gradient_accumulation_steps", "per_device_train_batch_size"},
    }.items():
        read |= names if method in read else set()
    assert sorted(set(HINTS) - read) == []
