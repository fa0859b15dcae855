"""Configs and commands from the documentation of TRL and from well-known recipes, with unchanged keys and values."""

from pathlib import Path

import pytest
import yaml

from raydpo.config import ParsedOptions, parse
from raydpo.errors import ConfigError

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
# The DPO step of Zephyr 7B in the alignment handbook
ZEPHYR = """
model_name_or_path: alignment-handbook/zephyr-7b-sft-full
torch_dtype: null
dataset_mixture:
  datasets:
    - id: HuggingFaceH4/ultrafeedback_binarized
      config: default
      split: train_prefs
      columns: [chosen, rejected]
      weight: 1.0
    - id: HuggingFaceH4/ultrafeedback_binarized
      config: default
      split: test_prefs
      columns: [chosen, rejected]
      weight: 1.0
  test_split_size: 2000
  seed: 0
dataset_num_proc: 12
bf16: true
beta: 0.01
do_eval: true
eval_strategy: steps
eval_steps: 100
gradient_accumulation_steps: 2
gradient_checkpointing: true
gradient_checkpointing_kwargs:
  use_reentrant: False
hub_model_id: zephyr-7b-dpo-full
learning_rate: 5.0e-7
log_level: info
logging_steps: 10
lr_scheduler_type: cosine
max_length: 1024
max_prompt_length: 512
num_train_epochs: 1
optim: adamw_torch
output_dir: data/zephyr-7b-dpo-full
per_device_train_batch_size: 8
per_device_eval_batch_size: 8
push_to_hub: true
save_strategy: "steps"
save_steps: 100
save_total_limit: 1
seed: 42
warmup_ratio: 0.1
"""


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


def test_the_alignment_handbook_is_refused_only_for_unsupported_keys(tmp_path: Path) -> None:
    path = tmp_path / "config_full.yaml"
    path.write_text(ZEPHYR)
    keys = yaml.safe_load(ZEPHYR)
    refused = []
    while True:
        try:
            parsed = parse(["--config", str(path)])
            config = parsed.job
            break
        except ConfigError as error:
            refused.append(str(error).split("=")[0])
        del keys[refused[-1]]
        path.write_text(yaml.safe_dump(keys, sort_keys=False))
    assert refused == ["dataset_mixture", "push_to_hub"]
    assert keys_with_notices(parsed) == [
        "dataset_num_proc",
        "do_eval",
        "gradient_checkpointing_kwargs",
        "hub_model_id",
        "log_level",
    ]
    assert parsed.explicit == keys.keys() - set(keys_with_notices(parsed)) - {"torch_dtype", "optim"}
    assert (config.loss.beta, config.optim.lr_scheduler_type, config.optim.warmup_ratio) == (0.01, "cosine", 0.1)
