"""The command line, up to the start of a run."""

import re

import pytest

from raydpo import config
from raydpo.cli.run import BAD_INPUT, main, with_output_dir


@pytest.mark.parametrize("job", config.JOBS)
def test_the_default_output_dir_is_named_after_the_job_or_the_run(job: str) -> None:
    folder = with_output_dir(config.parse([], job), job).job.run.output_dir
    assert re.fullmatch(rf"runs/{job}-\d{{8}}-\d{{6}}", folder or "")
    assert with_output_dir(config.parse(["--run_name", "mine"], job), job).job.run.output_dir == "runs/mine"
    assert with_output_dir(config.parse(["--output_dir", "there"], job), job).job.run.output_dir == "there"


@pytest.mark.parametrize(
    ("argv", "job", "message"),
    [
        (["--load_in_4bit"], "dpo", "error: load_in_4bit=true"),
        (["--loss_type", "sigmoid"], "orpo", "error: loss_type=sigmoid is not for jobs/orpo.py"),
    ],
)
def test_wrong_options_are_one_error_line_and_nothing_starts(
    argv: list[str], job: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(argv, job) == BAD_INPUT
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(message)
    assert len(printed.err.splitlines()) == 1
