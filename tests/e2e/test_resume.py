"""A run that is killed and restarted by the same command gives the results of an uninterrupted run."""

from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from raydpo.errors import ResumeError, TrainingError
from tests.e2e.jobs import Run, rows, run_job, run_until, write_rows

PAIRS, BATCH, EPOCHS = 22, 4, 2
PAIRS_OF_STEP = [4, 4, 4, 4, 4, 2] * EPOCHS
STEPS = len(PAIRS_OF_STEP)


@pytest.fixture(scope="module")
def job(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("resume")
    return {
        "model_name_or_path": str(tiny_model),
        "dataset_name": write_rows(folder / "pairs.jsonl", rows(PAIRS)),
        "cache_dir": str(folder / "cache"),
        "learning_rate": 1e-3,
        "num_train_epochs": EPOCHS,
        "per_device_train_batch_size": BATCH,
        "block_pairs": 5,
        "shuffle_window": 2,
        "zero_stage": 2,
        "disable_dropout": False,
        "use_peft": True,  # its dropout makes the results depend on the random state
        "lora_dropout": 0.2,
    }


@pytest.fixture(scope="module")
def uninterrupted(ray_local: None, job: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return run_job(tmp_path_factory.mktemp("uninterrupted"), **job)


@pytest.fixture(scope="module")
def killed_and_resumed(
    ray_local: None, job: dict[str, Any], uninterrupted: Run, tmp_path_factory: pytest.TempPathFactory
) -> Run:
    """A run that is killed once it has a checkpoint in the first epoch, and is then restarted."""
    folder = tmp_path_factory.mktemp("killed")
    options = {**job, "save_steps": 5, "logging_steps": 3}
    run_until("checkpoint-5", folder, **options)
    assert not (folder / "summary.json").exists()
    return run_job(folder, **options)


def test_losses_after_the_resume_equal_the_uninterrupted_run(uninterrupted: Run, killed_and_resumed: Run) -> None:
    assert killed_and_resumed.summary["training"]["resumed_at"] in (5, 10)
    assert len(uninterrupted.lines) == STEPS
    for line in killed_and_resumed.lines:  # the mean over three updates, also if the kill fell between them
        last = line["step"]
        three, sizes = uninterrupted.lines[last - 3 : last], PAIRS_OF_STEP[last - 3 : last]
        mean = sum(single["loss"] * size for single, size in zip(three, sizes, strict=True)) / sum(sizes)
        assert line["loss"] == pytest.approx(mean, rel=1e-6)
        assert line["grad_norm"] == pytest.approx(three[-1]["grad_norm"], rel=1e-6)
        assert line["learning_rate"] == pytest.approx(three[-1]["learning_rate"], rel=1e-9)


def test_each_pair_is_trained_on_once_per_epoch(killed_and_resumed: Run, uninterrupted: Run) -> None:
    ledger = killed_and_resumed.ledger()
    assert [entry["step"] for entry in ledger] == list(range(1, STEPS + 1))
    for epoch in range(EPOCHS):
        ids = Counter(pair for entry in ledger if entry["epoch"] == epoch for pair in entry["pairs"])
        assert ids == {f"pairs.jsonl:{row}": 1 for row in range(1, PAIRS + 1)}
    assert [entry["pairs"] for entry in ledger] == [entry["pairs"] for entry in uninterrupted.ledger()]


def test_metrics_have_one_line_per_logging_step(killed_and_resumed: Run) -> None:
    assert [line["step"] for line in killed_and_resumed.lines] == [3, 6, 9, 12]


def test_rerunning_a_finished_run_trains_nothing(ray_local: None, killed_and_resumed: Run, job: dict[str, Any]) -> None:
    again = run_job(killed_and_resumed.folder, **{**job, "save_steps": 5, "logging_steps": 3})
    assert again.summary["training"]["resumed_at"] == STEPS
    assert again.ledger() == killed_and_resumed.ledger()


def test_a_checkpoint_can_be_continued_in_another_folder_with_another_rate(
    ray_local: None, killed_and_resumed: Run, job: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = killed_and_resumed.folder / "checkpoints" / "checkpoint-10"
    run = run_job(tmp_path, **{**job, "learning_rate": 4e-4, "resume_from_checkpoint": str(checkpoint)})
    assert run.summary["training"]["resumed_at"] == 10
    assert [entry["step"] for entry in run.ledger()] == [11, 12]
    assert [entry["pairs"] for entry in run.ledger()] == [entry["pairs"] for entry in killed_and_resumed.ledger()[10:]]
    left = [2 / STEPS, 1 / STEPS]  # of the linear schedule
    assert [line["learning_rate"] for line in run.lines] == pytest.approx([4e-4 * share for share in left], rel=1e-9)
    (note,) = run.summary["notes"]
    assert "learning_rate=0.0004 (it was 0.001)" in note


def test_a_checkpoint_of_another_adapter_is_refused(
    ray_local: None, killed_and_resumed: Run, job: dict[str, Any], tmp_path: Path
) -> None:
    checkpoint = killed_and_resumed.folder / "checkpoints" / "checkpoint-10"
    with pytest.raises(ResumeError, match="lora_r=16, but this run has lora_r=4"):
        run_job(tmp_path, **job, lora_r=4, resume_from_checkpoint=str(checkpoint))
    assert list(tmp_path.iterdir()) == [], "refused before anything is written"


@pytest.mark.parametrize(("name", "recorded", "changed"), [("seed", "42", 7), ("num_workers", "1", 2)])
def test_other_options_in_the_same_folder_are_refused(
    ray_local: None, killed_and_resumed: Run, job: dict[str, Any], name: str, recorded: str, changed: float
) -> None:
    with pytest.raises(ResumeError, match=f"{name}={recorded}, but this run has {name}={changed}"):
        run_job(killed_and_resumed.folder, **{**job, name: changed, "save_steps": 5, "logging_steps": 3})


def test_a_run_that_diverged_keeps_its_last_good_checkpoint_and_writes_no_model(
    ray_local: None, job: dict[str, Any], tmp_path: Path
) -> None:
    """Train with a learning rate beyond float32: 0 in the first update, it destroys the weights in the second."""
    with pytest.raises(TrainingError, match=r"diverged: after step 2 \d+ weights .*checkpoint-1.*learning_rate"):
        run_job(tmp_path, **job | {"learning_rate": 1e39}, warmup_steps=1, save_steps=1)
    assert sorted(path.name for path in (tmp_path / "checkpoints").glob("checkpoint-*")) == ["checkpoint-1"]
    assert (tmp_path / "checkpoints" / "checkpoint-1" / "state.json").exists()
    assert not (tmp_path / "model").exists()
    assert not (tmp_path / "summary.json").exists()
