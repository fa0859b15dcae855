"""What DeepSpeed is told: from the flags, then from the file, which wins."""

import json
from pathlib import Path

import pytest

from raydpo import config
from raydpo.errors import ConfigError
from raydpo.training.deepspeed_engine import deepspeed_config


def test_flags() -> None:
    job = config.from_flat({"zero_stage": 3, "offload": "all", "max_grad_norm": 0.5, "per_device_train_batch_size": 4})
    told = deepspeed_config(job, "bfloat16", gpu=True, num_workers=2)
    assert told["zero_optimization"]["stage"] == 3
    assert told["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert told["zero_optimization"]["offload_param"]["device"] == "cpu"
    assert told["gradient_clipping"] == 0.5
    assert told["bf16"] == {"enabled": True}
    assert told["gradient_accumulation_steps"] == 1, "accumulation is driven by hand"


def test_a_file_wins_key_by_key_and_auto_leaves_ours(tmp_path: Path) -> None:
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
    told = deepspeed_config(job, "float32", gpu=False, num_workers=2)
    assert told["zero_optimization"] == {"stage": 1, "overlap_comm": True}
    assert told["gradient_clipping"] == 2.0
    assert told["train_micro_batch_size_per_gpu"] == 4


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold a JSON object"),
        ('{"train_batch_size": 64}', "train_batch_size=64; set it to auto"),
        (None, "cannot be read"),
    ],
)
def test_a_file_that_cannot_be_used(content: str | None, message: str, tmp_path: Path) -> None:
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
        ({}, "bfloat16", 1, 2),  # stage 0 would sum micro-batches in bfloat16
        ({"offload": "optimizer"}, "float32", 1, 2),
        ({"zero_stage": 1}, "float32", 1, 1),
        ({"zero_stage": 0}, "bfloat16", 4, 0),
    ],
)
def test_nothing_is_spread_where_there_is_nothing_to_spread(
    options: dict[str, object], precision: str, workers: int, stage: int
) -> None:
    told = deepspeed_config(config.from_flat(options), precision, gpu=False, num_workers=workers)
    assert told["zero_optimization"]["stage"] == stage
