"""The DeepSpeed config is built from the options, and a value in a file overrides an option and says so."""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from raydpo import config
from raydpo.config import JobConfig
from raydpo.errors import ConfigError
from raydpo.runtime.resources import WorkerGroup
from raydpo.training import deepspeed_keys
from raydpo.training.deepspeed_config import deepspeed_config, with_deepspeed_file
from raydpo.training.deepspeed_sections import schedule_notes


def group(workers: int = 2, *, gpu: bool = False) -> WorkerGroup:
    return WorkerGroup(workers, float(gpu), 1, {}, {})


def written(folder: Path, content: Mapping[str, Any] | str) -> str:
    file = folder / "zero.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(file)


def settled(
    options: Mapping[str, Any], *, gpu: bool = False, workers: int = 2, width: int | None = 100
) -> tuple[JobConfig, dict[str, Any], tuple[str, ...]]:
    """Return the job with its file applied, the DeepSpeed config, and the notes."""
    job = config.from_flat(dict(options))
    job, file, notes = with_deepspeed_file(job, gpu=gpu, num_workers=workers)
    return job, deepspeed_config(job, file, group(workers, gpu=gpu), width), notes


def test_options_become_deepspeed_settings() -> None:
    options = {"zero_stage": 3, "offload": "all", "max_grad_norm": 0.5, "per_device_train_batch_size": 4}
    _, settings, notes = settled(options, gpu=True)
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert settings["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"] == {"enabled": True}
    assert settings["gradient_accumulation_steps"] == 1, "the training loop sets the accumulation boundaries itself"
    assert notes == ()


def test_the_file_overrides_options_by_key_except_auto(tmp_path: Path) -> None:
    content = {
        "train_micro_batch_size_per_gpu": "auto",
        "train_batch_size": 8,
        "gradient_clipping": 2.0,
        "zero_optimization": {"stage": 1, "overlap_comm": True, "reduce_scatter": "auto"},
    }
    path = written(tmp_path, content)
    job, settings, notes = settled({"zero_stage": 3, "deepspeed": path, "per_device_train_batch_size": 4})
    assert settings["zero_optimization"] == {"stage": 1, "overlap_comm": True}
    assert settings["gradient_clipping"] == 2.0
    assert settings["train_micro_batch_size_per_gpu"] == 4
    assert (job.cluster.zero_stage, job.optim.max_grad_norm) == (1, 2.0), "config.yaml records what is trained with"
    assert notes == (
        f"deepspeed={path} sets gradient_clipping=2, which overrides max_grad_norm=1",
        f"deepspeed={path} sets zero_optimization.stage=1, which overrides zero_stage=3",
    )


def test_a_file_as_hugging_face_writes_it_takes_all_options(tmp_path: Path) -> None:
    content = {
        "bf16": {"enabled": "auto"},
        "fp16": {"enabled": "auto", "loss_scale": 0},
        "optimizer": {
            "type": "AdamW",
            "params": {"lr": "auto", "betas": "auto", "eps": "auto", "weight_decay": "auto"},
        },
        "scheduler": {
            "type": "WarmupLR",
            "params": {"warmup_min_lr": "auto", "warmup_max_lr": "auto", "warmup_num_steps": "auto"},
        },
        "zero_optimization": {
            "stage": 3,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": "auto",
            "offload_optimizer": {"device": "auto", "pin_memory": True},
        },
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "wall_clock_breakdown": False,
    }
    path = written(tmp_path, content)
    options = {"learning_rate": 1e-6, "weight_decay": 0.1, "warmup_steps": 5, "zero_stage": 3, "deepspeed": path}
    job, settings, notes = settled(options, gpu=True)
    assert notes == ()
    assert settings["optimizer"]["params"] == {"lr": 1e-6, "betas": (0.9, 0.999), "eps": 1e-8, "weight_decay": 0.1}
    zero = settings["zero_optimization"]
    # The rules of HfTrainerDeepSpeedConfig.trainer_config_finalize, for a model that is 100 wide.
    assert zero["reduce_bucket_size"] == 10_000
    assert zero["stage3_prefetch_bucket_size"] == 9_000
    assert zero["stage3_param_persistence_threshold"] == 1_000
    assert "stage3_gather_16bit_weights_on_model_save" not in zero, "weights are saved another way"
    assert "device" not in zero["offload_optimizer"]
    assert settings["bf16"]["enabled"] is True
    assert settings["fp16"]["enabled"] is False
    assert schedule_notes(path, settings, job.optim, 20) == [
        f"deepspeed={path} sets scheduler.type=WarmupLR, which overrides lr_scheduler_type=linear"
    ]
    with pytest.raises(ConfigError, match="follows the hidden_size"):
        settled(options, width=None)


def test_values_in_the_file_win_and_each_is_noted_unless_it_is_the_options(tmp_path: Path) -> None:
    content = {
        "optimizer": {"type": "AdamW", "params": {"lr": 2e-4, "betas": [0.9, 0.95], "eps": 1e-8, "weight_decay": 0.01}},
        "scheduler": {"type": "WarmupDecayLR", "params": {"total_num_steps": 500, "warmup_num_steps": 3}},
        "fp16": {"enabled": True},
        "zero_optimization": {"offload_optimizer": {"device": "cpu"}},
    }
    path = written(tmp_path, content)
    options = {"deepspeed": path, "learning_rate": 1e-6, "adam_epsilon": 1e-8, "warmup_ratio": 0.1, "zero_stage": 2}
    job, settings, notes = settled(options, gpu=True)
    assert set(notes) == {
        f"deepspeed={path} sets optimizer.params.lr=0.0002, which overrides learning_rate=1e-06",
        f"deepspeed={path} sets optimizer.params.betas[1]=0.95, which overrides adam_beta2=0.999",
        f"deepspeed={path} sets optimizer.params.weight_decay=0.01, which overrides weight_decay=0",
        f"deepspeed={path} sets scheduler.params.warmup_num_steps=3, which overrides warmup_steps=0 and "
        "warmup_ratio=0.1",
        f"deepspeed={path} sets fp16.enabled=true, which overrides fp16=false",
        f"deepspeed={path} sets zero_optimization.offload_optimizer.device=cpu, which overrides offload=none",
    }
    assert job.precision(gpu=True) == "float16"
    assert job.optim.learning_rate == 2e-4
    assert settings["fp16"]["enabled"] is True
    assert schedule_notes(path, settings, job.optim, 20)[1] == (
        f"deepspeed={path} sets scheduler.params.total_num_steps=500, and the run has 20 updates"
    )
    again = config.from_flat({**config.to_flat(job), "deepspeed": path})  # as config.yaml of the run has them
    assert with_deepspeed_file(again, gpu=True, num_workers=2)[2] == ()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"fp16": {}, "fp16": {}}', "sets fp16 twice"),
        (None, "cannot be read"),
        ({"train_batch_size": 64}, r"train_batch_size=64.*num_workers=16; set it to auto"),
        ({"gradient_accumulation_steps": 4}, "contradicts gradient_accumulation_steps=1"),
        ({"gradient_cliping": 1.0}, "nearest name is gradient_clipping"),
        ({"zero_optimisation": {}}, "nearest name is zero_optimization"),
        ({"zero_optimization": {"stagee": 2}}, "nearest name is zero_optimization.stage"),
        ({"zero_optimization": True}, "must be an object"),
        ({"zero_optimization": {"stage": 7}}, "zero_stage=7 must be one of 0, 1, 2, 3"),
        ({"zero_optimization": {"stage": 1, "offload_param": {"device": "cpu"}}}, "requires ZeRO stage 3, not 1"),
        ({"zero_optimization": {"stage": 0, "offload_optimizer": {"device": "cpu"}}}, "at least 1, not 0"),
        ({"bf16": {"enabled": True}, "fp16": {"enabled": True}}, "exclude each other"),
        ({"bf16": {"enabled": "yes"}}, "must be true, false"),
        ({"amp": {"enabled": True}}, "sets amp, which DeepSpeed does not know; leave it out"),
        ({"gradient_allreduce_op": "sum"}, "gradient_allreduce_op=sum.*must be mean"),
        ({"managed_gradient_accumulation": False}, "managed_gradient_accumulation=false.*must be true"),
        ({"torch_autocast": {"enabled": True}}, "torch_autocast.enabled=true.*must be false.*bf16=true"),
        ({"tensor_parallel": {"autotp_size": 2}}, "tensor_parallel.autotp_size=2"),
        ({"optimizer": {"type": "AdamV"}}, "nearest name is optimizer.type Adam"),
        ({"optimizer": {"type": "Lion"}}, "compiles for a GPU.*set it to AdamW"),
        ({"optimizer": {"type": "LBFGS"}}, "optimizer.type"),
        ({"optimizer": {"type": "SGD"}}, '"zero_allow_untested_optimizer": true'),
        ({"optimizer": {"type": "Adagrad"}}, "loses with ZeRO stage 2"),
        (
            {"optimizer": {"type": "AdamW", "params": {"learning_rate": 1}}},
            r"known are adam_w_mode, .*, lr, torch_adam, ",
        ),
        ({"optimizer": {"type": "AdamW", "params": {"lr": "2e-4 "}}}, None),
        ({"optimizer": {"type": "AdamW", "params": {"lr": "fast"}}}, "must be a number"),
        ({"optimizer": {"type": "AdamW", "params": {"lr": -1}}}, "learning_rate=-1.0 must be at least 0"),
        ({"optimizer": {"params": {"betas": 0.9}}}, "must be two numbers"),
        ({"scheduler": {"type": "WarmUpLR"}}, "nearest name is scheduler.type WarmupLR"),
        (
            {"scheduler": {"type": "WarmupLR", "params": {"total_num_steps": 5}}},
            r"known are warmup_max_lr, ",
        ),
        ({"scheduler": {"type": "ReduceLROnPlateau"}}, "scheduler.type"),
        ({"scheduler": {"type": "OneCycle"}}, "without scheduler.params.cycle_min_lr"),
        ({"scheduler": {"type": "StepLR"}}, "without scheduler.params.step_size"),
        ({"scheduler": {"params": {"warmup_num_steps": 5}}}, "without scheduler.type"),
        (
            {"optimizer": {"params": {"lr": 1e-5}}, "scheduler": {"type": "WarmupLR", "params": {"warmup_max_lr": 1}}},
            "set one of them to auto",
        ),
    ],
)
def test_a_file_that_cannot_be_right_is_refused(content: Any, message: str | None, tmp_path: Path) -> None:
    path = written(tmp_path, content) if content is not None else str(tmp_path / "none.json")
    if message is None:
        assert settled({"deepspeed": path})[0].optim.learning_rate == 2e-4
        return
    with pytest.raises(ConfigError, match=message):
        settled({"deepspeed": path})


@pytest.mark.parametrize(
    ("section", "options"),
    [
        ({"bf16": {"enabled": True}}, {"fp16": True}),
        ({"bf16": {"enabled": True}}, {"bf16": False}),
        ({"bf16": {"enabled": True}}, {"dtype": "float32"}),
        ({"bf16": {"enabled": False}}, {"bf16": True}),
        ({"fp16": {"enabled": True}}, {"bf16": True}),
        ({"fp16": {"enabled": False}}, {"dtype": "float16"}),
        ({"zero_optimization": {"stage": 2}}, {"offload": "all", "zero_stage": 3}),
        ({"zero_optimization": {"stage": 3}}, {"torch_compile": True}),
    ],
)
def test_a_file_that_contradicts_options_is_refused(
    section: dict[str, Any], options: dict[str, Any], tmp_path: Path
) -> None:
    path = written(tmp_path, section)
    (option, _), *_ = options.items()
    with pytest.raises(ConfigError, match=f"deepspeed={path}.*{option}="):
        settled({**options, "deepspeed": path})


@pytest.mark.parametrize(
    ("optimizer", "texts"),
    [
        ({"type": "Adam"}, []),
        (
            {"type": "Adam", "params": {"adam_w_mode": False}},
            ["optimizer.params.adam_w_mode=false, which replaces AdamW"],
        ),
        ({"type": "SGD"}, ["optimizer.type=SGD, which replaces AdamW"]),
    ],
)
def test_an_optimizer_other_than_adamw_is_noted(optimizer: dict[str, Any], texts: list[str], tmp_path: Path) -> None:
    path = written(tmp_path, {"optimizer": optimizer, "zero_allow_untested_optimizer": True})
    assert list(settled({"deepspeed": path})[2]) == [f"deepspeed={path} sets {text}" for text in texts]


def test_the_known_names_are_those_of_the_installed_version(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "DS_ACCELERATOR", "cpu")
    import inspect

    from deepspeed.runtime import config as installed
    from deepspeed.runtime import lr_schedules, precision_config
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    def names(model: Any) -> set[str]:
        return {name for key, field in model.model_fields.items() for name in (key, field.alias) if name}

    assert names(DeepSpeedZeroConfig) == deepspeed_keys.ZERO
    assert names(precision_config.DeepSpeedBF16Config) == deepspeed_keys.BF16
    assert names(precision_config.DeepSpeedFP16Config) == deepspeed_keys.FP16
    assert set(installed.DEEPSPEED_OPTIMIZERS) == deepspeed_keys.OPTIMIZERS
    for name, parameters in deepspeed_keys.SCHEDULERS.items():
        taken = set(inspect.signature(getattr(lr_schedules, name)).parameters)
        assert taken - {"optimizer", "last_batch_iteration"} == parameters


@pytest.mark.parametrize(
    ("options", "precision", "workers", "stage"),
    [
        ({}, "float32", 1, 0),
        ({}, "float32", 2, 2),
        ({}, "bfloat16", 1, 2),  # stage 0 would accumulate micro-batch gradients in bfloat16
        ({"offload": "optimizer"}, "float32", 1, 2),
        ({"zero_stage": 1}, "float32", 1, 1),
        ({"zero_stage": 0}, "bfloat16", 4, 0),
    ],
)
def test_the_default_zero_stage_depends_on_workers_precision_and_offload(
    options: dict[str, object], precision: str, workers: int, stage: int
) -> None:
    halves = {"bf16": precision == "bfloat16"}
    settings = deepspeed_config(config.from_flat({**options, **halves}), {}, group(workers), None)
    assert settings["zero_optimization"]["stage"] == stage
