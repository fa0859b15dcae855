"""The DeepSpeed config is built from the options, and the keys of a config file override them."""

import json
from pathlib import Path

import pytest

from raydpo import config
from raydpo.errors import ConfigError
from raydpo.training.deepspeed_engine import deepspeed_config


def test_options_become_deepspeed_settings() -> None:
    job = config.from_flat({"zero_stage": 3, "offload": "all", "max_grad_norm": 0.5, "per_device_train_batch_size": 4})
    settings = deepspeed_config(job, "bfloat16", gpu=True, num_workers=2)
    assert settings["zero_optimization"]["stage"] == 3
    assert settings["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert settings["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert settings["gradient_clipping"] == 0.5
    assert settings["bf16"] == {"enabled": True}
    assert settings["gradient_accumulation_steps"] == 1, "the training loop sets the accumulation boundaries itself"


def test_the_file_overrides_options_by_key_except_auto(tmp_path: Path) -> None:
    file = tmp_path / "deepspeed.json"
    file.write_text(
        json.dumps(
            {
                "train_micro_batch_size_per_gpu": "auto",
                "gradient_clipping": 2.0,
                "zero_optimization": {"stage": 1, "overlap_comm": True, "reduce_bucket_size": "auto"},
            }
        )
    )
    job = config.from_flat({"zero_stage": 3, "deepspeed": str(file), "per_device_train_batch_size": 4})
    settings = deepspeed_config(job, "float32", gpu=False, num_workers=2)
    assert settings["zero_optimization"] == {"stage": 1, "overlap_comm": True}
    assert settings["gradient_clipping"] == 2.0
    assert settings["train_micro_batch_size_per_gpu"] == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"train_batch_size": 64}', "train_batch_size=64; set it to auto"),
        (None, "cannot be read"),
    ],
)
def test_an_unusable_file_is_refused(content: str | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "deepspeed.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(ConfigError, match=message):
        deepspeed_config(config.from_flat({"deepspeed": str(file)}), "float32", gpu=False, num_workers=2)


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
    settings = deepspeed_config(config.from_flat(options), precision, gpu=False, num_workers=workers)
    assert settings["zero_optimization"]["stage"] == stage
