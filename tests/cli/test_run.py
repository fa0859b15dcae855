"""The command line, up to where a run starts."""

import re

import pytest

from raydpo import config
from raydpo.cli.run import BAD_INPUT, main, with_output_dir


@pytest.mark.parametrize("job", config.JOBS)
def test_a_run_without_a_folder_gets_one_called_after_its_job(job: str) -> None:
    folder = with_output_dir(config.parse([], job), job).job.run.output_dir
    assert re.fullmatch(rf"runs/{job}-\d{{8}}-\d{{6}}", folder or "")
    assert with_output_dir(config.parse(["--run_name", "mine"], job), job).job.run.output_dir == "runs/mine"
    assert with_output_dir(config.parse(["--output_dir", "there"], job), job).job.run.output_dir == "there"


@pytest.mark.parametrize(
    ("argv", "job", "message"),
    [
        (["--push_to_hub"], "dpo", "error: push_to_hub=true"),
        (["--loss_type", "sigmoid"], "orpo", "error: loss_type=sigmoid is not for jobs/orpo.py"),
    ],
)
def test_wrong_options_end_before_anything_starts(
    argv: list[str], job: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv, job) == BAD_INPUT
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(message)
    assert len(told.err.splitlines()) == 1
