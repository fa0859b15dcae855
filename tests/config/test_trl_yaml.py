"""Configs and commands from the documentation of TRL and from well-known recipes, with unchanged keys and values."""

from pathlib import Path

import pytest

from raydpo.config import ParsedOptions, parse

# trl/scripts/dpo.py
FULL = """
    --dataset_name trl-lib/ultrafeedback_binarized
    --model_name_or_path Qwen/Qwen2-0.5B-Instruct
    --learning_rate 5.0e-7
    --num_train_epochs 1
    --per_device_train_batch_size 2
    --max_steps 1000
    --gradient_accumulation_steps 8
    --eval_strategy steps
    --eval_steps 50
    --output_dir Qwen2-0.5B-DPO
    --no_remove_unused_columns
"""
LORA = FULL.replace("5.0e-7", "5.0e-6") + "--use_peft --lora_r 32 --lora_alpha 16"
# TRL's page on its command line
DOCUMENTED = [
    "model_name_or_path: Qwen/Qwen2.5-0.5B\ndataset_name: anthropic/hh-rlhf\n",
    "model_name_or_path: Qwen/Qwen2.5-0.5B\ndataset_name: anthropic/hh-rlhf\nnum_processes: 4\n",
    "model_name_or_path: Qwen/Qwen2.5-0.5B\ndataset_name: anthropic/hh-rlhf\n"
    "accelerate_config: zero2  # or path/to/my/accelerate/config.yaml\n",
]
# TRL's page on ORPO, and the head of its script
ORPO = (
    "--model_name_or_path Qwen/Qwen2-0.5B-Instruct --dataset_name trl-lib/ultrafeedback_binarized "
    "--num_train_epochs 1 --output_dir Qwen2-0.5B-ORPO"
)
EXAMPLE = (
    "--dataset_name trl-internal-testing/hh-rlhf-helpful-base-trl-style --model_name_or_path=gpt2 "
    "--per_device_train_batch_size 4 --max_steps 1000 --learning_rate 8e-6 --gradient_accumulation_steps 1 "
    "--eval_steps 500 --output_dir=gpt2-aligned --warmup_steps 150 --report_to wandb --bf16 --logging_first_step "
    "--no_remove_unused_columns"
)


def keys_with_notices(parsed: ParsedOptions) -> list[str]:
    """Return the keys that give a notice."""
    return [notice.split("=")[0] for notice in parsed.notices]


def test_the_command_in_trls_script_is_valid() -> None:
    parsed = parse(FULL.split())
    config = parsed.job
    assert keys_with_notices(parsed) == ["remove_unused_columns"]
    assert config.data.dataset_name == ("trl-lib/ultrafeedback_binarized",)
    assert (config.optim.learning_rate, config.optim.max_steps, config.optim.eval_steps) == (5e-7, 1000, 50)
    assert config.run.output_dir == "Qwen2-0.5B-DPO"


def test_the_command_with_lora_is_valid() -> None:
    config = parse(LORA.split()).job
    assert (config.adapter.use_peft, config.adapter.lora_r, config.adapter.lora_alpha) == (True, 32, 16)


@pytest.mark.parametrize("text", DOCUMENTED)
def test_the_documented_files_are_valid(text: str, tmp_path: Path) -> None:
    path = tmp_path / "dpo_config.yaml"
    path.write_text(text)
    parsed = parse(["--config", str(path)])
    config = parsed.job
    assert parsed.notices == ()
    assert (config.model.model_name_or_path, config.data.dataset_name) == ("Qwen/Qwen2.5-0.5B", ("anthropic/hh-rlhf",))
    assert config.cluster.num_workers == (4 if "num_processes" in text else None)
    assert config.zero_stage(num_workers=4, precision="bfloat16") == 2


@pytest.mark.parametrize("job", ["orpo", "cpo"])
def test_the_commands_for_orpo_and_cpo_are_valid(job: str) -> None:
    assert parse(ORPO.split(), job).notices == ()
    parsed = parse(EXAMPLE.split(), job)
    config = parsed.job
    assert keys_with_notices(parsed) == ["remove_unused_columns"]
    assert (config.run.logging_first_step, config.run.report_to, config.optim.bf16) == (True, ("wandb",), True)
    assert config.loss.loss_type == (("orpo",) if job == "orpo" else ("sigmoid",))
    assert not config.loss.needs_reference
