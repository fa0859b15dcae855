"""A whole run on rows with images: ZeRO-3 on two workers against TRL's trainer, and a second run."""

from pathlib import Path

import pytest

from tests.e2e.jobs import Run, run_job, write_rows
from tests.parity.image_sides import OPTIONS, ImageSides, image_rows, trl_training
from tests.parity.trl_side import needs_trl

pytestmark = pytest.mark.usefixtures("ray_local")


@needs_trl
def test_a_run_on_images_equals_trl_and_a_second_one_processes_and_scores_nothing(tmp_path: Path) -> None:
    sides = ImageSides.make(tmp_path, "qwen2_vl")
    rows = image_rows()
    folder = sides.case.folder

    def run(name: str) -> Run:
        return run_job(
            tmp_path / name,
            **OPTIONS
            | {
                "model_name_or_path": str(sides.policy),
                "reference_model": str(sides.reference),
                "dataset_name": write_rows(folder / "rows.jsonl", rows),
                "cache_dir": str(tmp_path / "cache"),
                "train_sampling_strategy": "sequential",
                "per_device_train_batch_size": 2,
                "tokens_per_micro_batch": 100,
                "num_workers": 2,
                "zero_stage": 3,
            },
        )

    first = run("first")
    _, log = trl_training(sides, rows, frozen=True)
    assert len(first.lines) == len(log) == 5
    for line, entry in zip(first.lines, log, strict=True):
        for name in ("loss", "grad_norm", "rewards/margins", "logps/chosen", "logps/rejected"):
            floor = 3e-7 * abs(entry["logps/chosen"]) if name.startswith("rewards/") else 0.0
            assert line[name] == pytest.approx(entry[name], rel=1e-4, abs=floor), (entry["step"], name)
    images = first.summary["rows"]["images"]
    assert (images["distinct"], images["processed"]) == (2, 2)

    second = run("second")
    assert second.summary["rows"]["images"]["processed"] == 0
    assert second.summary["reference"]["completions_scored"] == 0
    assert [line["loss"] for line in second.lines] == [line["loss"] for line in first.lines]
