"""Keys of TRL that are not options here: accepted under another name, ignored with a notice, or refused."""

import pytest

from raydpo.config import FLAGS, HINTS, from_flat, parse, parse_options, to_flat, to_yaml
from raydpo.config.trl_compat import KEYS, NO_EFFECT, REFUSED, RENAMED, TRANSLATED
from raydpo.errors import ConfigError


def notices(command: str) -> list[str]:
    """Return the notices that a command gives."""
    return list(parse(command.split()).notices)


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("--torch_dtype bfloat16", {"dtype": "bfloat16"}),
        ("--torch_dtype null", {}),
        ("--evaluation_strategy epoch", {"eval_strategy": "epoch"}),
        ("--num_processes 4", {"num_workers": 4}),
        ("--num-processes=4", {"num_workers": 4}),
        ("--ref_model other", {"reference_model": "other"}),
        ("--activation_checkpointing false", {"gradient_checkpointing": False}),
        ("--no_activation_checkpointing", {"gradient_checkpointing": False}),
        ("--accelerate_config zero3", {"zero_stage": 3}),
        ("--accelerate_config multi_gpu", {"zero_stage": 0}),
        ("--mixed_precision fp16", {"fp16": True}),
        ("--mixed_precision no", {}),
        ("--use_cpu", {"gpus_per_worker": 0, "reference_gpus_per_worker": 0}),
        ("--use_cpu false", {}),
        ("--no_cuda yes", {"gpus_per_worker": 0, "reference_gpus_per_worker": 0}),
        ("--overwrite_output_dir", {"resume_from_checkpoint": "none"}),
        ("--use_flash_attention_2", {"attn_implementation": "flash_attention_2"}),
    ],
)
def test_other_names_of_options_are_accepted(command: str, expected: dict[str, object]) -> None:
    parsed = parse(command.split())
    config = parsed.job
    assert config == from_flat(expected)
    assert parsed.explicit == set(expected)
    assert parsed.notices == ()


def test_each_other_name_stands_for_an_option() -> None:
    assert set(RENAMED.values()) <= set(HINTS)
    for table in TRANSLATED.values():
        for values in table.values():
            from_flat({"zero_stage": 2, **values})


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("--torch_dtype float32 --dtype bfloat16", ["torch_dtype=float32", "dtype=bfloat16", "one of them"]),
        ("--accelerate_config zero3 --zero_stage 2", ["accelerate_config=zero3", "zero_stage=2"]),
        ("--accelerate_config fsdp2", ["accelerate_config=fsdp2", "zero1, zero2, zero3", "num_workers, zero_stage"]),
        ("--num_processes many", ["num_workers=many", "whole number"]),
    ],
)
def test_other_names_are_checked_like_options(command: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(command.split())
    for word in words:
        assert word in str(caught.value)


def test_two_names_may_give_the_same_value() -> None:
    config = parse("--activation_checkpointing --gradient_checkpointing true --bf16 --mixed_precision bf16".split()).job
    assert config == from_flat({"gradient_checkpointing": True, "bf16": True})


def test_a_flag_overrides_another_name_in_the_file(tmp_path: object) -> None:
    path = f"{tmp_path}/run.yaml"
    with open(path, "w") as stream:
        stream.write("torch_dtype: float32\naccelerate_config: zero3\npush_to_hub: true\n")
    config = parse(["--config", path, "--dtype", "bfloat16", "--zero_stage", "1", "--no_push_to_hub"]).job
    assert (config.model.dtype, config.cluster.zero_stage) == ("bfloat16", 1)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("--no_remove_unused_columns", "remove_unused_columns=false has no effect here: columns that are not needed"),
        ("--precompute_ref_log_probs", "precompute_ref_log_probs=true has no effect here: reference log-probs"),
        ("--dataset_num_proc 8", "dataset_num_proc=8 has no effect here: every free CPU"),
        ("--log_level info", "log_level=info has no effect here"),
        ("--disable_tqdm", "disable_tqdm=true has no effect here"),
        ("--include_for_metrics loss inputs", "include_for_metrics=loss inputs has no effect here"),
        ("--eval_delay 0.5", "eval_delay=0.5 has no effect here"),
        ("--push_to_hub", "push_to_hub=true has no effect here: nothing is pushed to the hub; upload output_dir/model"),
        ("--optim paged_adamw_32bit", "optim=paged_adamw_32bit has no effect here: it is AdamW"),
        ("--use_peft --load_in_4bit", "load_in_4bit=true has no effect here: the adapter is trained on the base model"),
        ("--hub_token hf_secret", "hub_token=... has no effect here: nothing is pushed"),
    ],
)
def test_keys_without_effect_give_one_notice(command: str, message: str) -> None:
    (notice,) = notices(command)
    assert notice.startswith(message)
    assert "hf_secret" not in notice


def test_the_values_of_keys_without_effect_can_be_nested() -> None:
    (notice,) = parse(["--gradient_checkpointing_kwargs", '{"use_reentrant": false}']).notices
    assert notice.startswith('gradient_checkpointing_kwargs={"use_reentrant": false} has no effect here')
    (notice,) = parse_options({"gradient_checkpointing_kwargs": {"use_reentrant": False}}).notices
    assert notice.startswith('gradient_checkpointing_kwargs={"use_reentrant": false} has no effect here')


@pytest.mark.parametrize(
    "command",
    [
        "--remove_unused_columns --dataset_num_proc null --eval_delay 0 --no_do_eval",
        "--no_load_in_4bit --load_in_8bit false --push_to_hub False --optim adamw_torch --alpha 0 --fsdp false",
        "--optim adamw_hf --neftune_noise_alpha none --label_smoothing_factor 0.0 --lora_task_type CAUSAL_LM",
    ],
)
def test_neutral_values_give_no_notice(command: str) -> None:
    parsed = parse(command.split())
    config = parsed.job
    assert config == from_flat({})
    assert (parsed.notices, parsed.explicit) == ((), frozenset())


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("--load_in_4bit", ["load_in_4bit=true", "use_peft"]),
        ("--load_best_model_at_end true", ["load_best_model_at_end=true", "max_steps"]),
        ("--fsdp full_shard auto_wrap", ["fsdp=full_shard auto_wrap", "zero_stage=3"]),
        ("--optim paged_adamw_8bit", ["optim=paged_adamw_8bit", "AdamW", "`deepspeed`"]),
        ("--neftune_noise_alpha 5", ["neftune_noise_alpha=5", "leave it out"]),
        ("--torch_compile_mode max-autotune", ["torch_compile_mode=max-autotune", "leave it out"]),
        ("--torch_compile --zero_stage 3", ["torch_compile=true", "zero_stage=3"]),
        ("--alpha 0.25", ["alpha=0.25", "simpo"]),
        ("--label_smoothing_factor 0.1", ["label_smoothing_factor=0.1", "label_smoothing"]),
        ('--model_init_kwargs {"dtype":"bfloat16"}', ["model_init_kwargs=", "dtype"]),
        ("--dataloader_drop_last", ["dataloader_drop_last=true", "every pair"]),
        ("--lr 1e-5", ["lr=1e-5", "learning_rate"]),
        ("--padding_fre", ["padding_fre ", "nearest is padding_free"]),
    ],
)
def test_keys_of_unsupported_features_are_refused(command: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(command.split())
    for word in words:
        assert word in str(caught.value)


def test_a_reference_that_is_not_used_gives_a_notice() -> None:
    assert parse("--reference_model other".split()).notices == ()
    (notice,) = parse("--reference_model other".split(), "orpo").notices
    assert "the objective takes no reference" in notice


def test_the_written_config_has_options_only() -> None:
    parsed = parse("--use_cpu --dataset_num_proc 8 --label_smoothing 0.1".split())
    config = parsed.job
    assert len(parsed.notices) == 2
    assert "label_smoothing=0.1 smooths the labels" in parsed.notices[1]
    assert parsed.with_defaults({"beta": 0.2}).notices == parsed.notices
    assert not set(to_flat(config)) & KEYS
    assert "dataset_num_proc" not in to_yaml(config)


def test_every_key_has_an_explanation() -> None:
    assert set(FLAGS) == KEYS | set(HINTS)
    for key, entry in {**NO_EFFECT, **REFUSED}.items():
        assert entry.text, key
        assert not entry.text.endswith("."), key
        assert not any(entry.is_requested(value) for value in entry.neutral), key
