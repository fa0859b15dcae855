"""The date that a chat template writes is that of the run's first day, recorded in its folder."""

import os
import shutil
from datetime import date, datetime
from pathlib import Path

import pytest
import yaml
from transformers import AutoTokenizer

from raydpo.errors import ConfigError, ResumeError
from raydpo.reporting.rundir import RunDir
from raydpo.stages.plan import plan_run
from tests.data.templates.samples import CHATML, DATED
from tests.stages.plan_helpers import CPU_NODE, job_of

EARLIER = "2024-02-29"


def model_with(template: str, tiny_model: Path, folder: Path) -> Path:
    """Return a copy of the tiny model that has this chat template."""
    model = folder / "model"
    shutil.copytree(tiny_model, model)
    tokenizer = AutoTokenizer.from_pretrained(model)
    tokenizer.chat_template = template
    tokenizer.save_pretrained(model)
    return model


def start(model: Path, folder: Path, **options: object) -> str | None:
    """Start a run as the pipeline does; return the date that its tokens have."""
    plan = plan_run(job_of(model, folder, **options), [CPU_NODE])
    plan.run_dir.start(plan.job)
    return plan.job.data.chat_template_date


def record(folder: Path, day: str | None) -> None:
    """Make the run's folder that of a run which began on another day, and has a checkpoint."""
    path = RunDir(str(folder / "run")).config
    content = yaml.safe_load(path.read_text())
    content["chat_template_date"] = day
    path.write_text(yaml.safe_dump(content))
    (folder / "run" / "checkpoints").mkdir(exist_ok=True)


def test_a_run_keeps_the_date_of_its_first_day(tiny_model: Path, tmp_path: Path) -> None:
    model = model_with(DATED, tiny_model, tmp_path)
    assert start(model, tmp_path) == date.today().isoformat()
    record(tmp_path, EARLIER)
    assert start(model, tmp_path) == EARLIER
    assert start(model, tmp_path, chat_template_date=EARLIER) == EARLIER
    with pytest.raises(ResumeError, match=f"chat_template_date={EARLIER}, but this run has .*2025-01-01; .* or choose"):
        start(model, tmp_path, chat_template_date="2025-01-01")
    assert start(model, tmp_path, resume_from_checkpoint="none") == date.today().isoformat()


def test_a_run_of_an_earlier_version_goes_on(tiny_model: Path, tmp_path: Path) -> None:
    """Its config.yaml has no date; its tokens are those of the day on which it was written."""
    model = model_with(DATED, tiny_model, tmp_path)
    start(model, tmp_path)
    record(tmp_path, None)
    moment = datetime.fromisoformat(EARLIER).timestamp() + 3600
    os.utime(RunDir(str(tmp_path / "run")).config, (moment, moment))
    assert start(model, tmp_path) == EARLIER


def test_a_template_without_a_date_needs_none(tiny_model: Path, tmp_path: Path) -> None:
    assert start(model_with(CHATML, tiny_model, tmp_path), tmp_path) is None


@pytest.mark.parametrize("value", ["2024-2-29", "29.02.2024", "2023-02-29", "today"])
def test_a_date_that_is_none_is_refused(value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"chat_template_date={value}.* YYYY-MM-DD"):
        job_of(tmp_path, tmp_path, chat_template_date=value)
