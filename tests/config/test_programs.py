"""The programs in jobs/: their help, their defaults, and the objectives that they take."""

from pathlib import Path

import pytest

from raydpo.config import HINTS, JOBS, help_text, parse, to_flat, to_yaml
from raydpo.errors import ConfigError

ROOT = Path(__file__).parents[2]


def test_help_shows_every_option_by_section(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(["--beta", "0.2", "--help"])
    assert caught.value.code == 0
    text = capsys.readouterr().out
    places = [text.index(f"\n  --{name} ") for name in HINTS]
    assert places == sorted(places)
    assert " ".join(text.split()).count("[default: ") == len(HINTS)


@pytest.mark.parametrize("job", JOBS)
def test_a_job_has_a_script_defaults_of_its_own_and_its_name_in_the_help(job: str) -> None:
    script = (ROOT / "jobs" / f"{job}.py").read_text()
    assert f'program="{job}"' in script or f"raydpo.cli.{job} import main" in script or job == "dpo"
    parsed = parse([], job)
    job_config = parsed.job
    assert {
        name: value for name, value in to_flat(job_config).items() if value != to_flat(parse([]).job)[name]
    } == dict(JOBS[job].defaults)
    assert parsed.explicit == frozenset()
    assert f"python jobs/{job}.py" in help_text(job)


def test_options_of_the_user_override_the_defaults_of_a_job(tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text("loss_type: simpo\ncpo_alpha: 0.0\n", encoding="utf-8")
    parsed = parse(["--config", str(path), "--simpo_gamma", "1"], "cpo")
    config = parsed.job
    assert (config.loss.loss_type, config.loss.cpo_alpha, config.loss.simpo_gamma) == (("simpo",), 0.0, 1.0)
    assert config.loss.reference_free
    assert parsed.explicit == {"loss_type", "cpo_alpha", "simpo_gamma"}


def test_the_written_config_repeats_a_run_of_any_job(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    for job in JOBS:
        path.write_text(to_yaml(parse([], job).job), encoding="utf-8")
        assert parse(["--config", str(path)], job).job == parse(["--config", str(path)]).job == parse([], job).job


@pytest.mark.parametrize(
    ("job", "command", "words"),
    [
        ("orpo", "--loss_type sigmoid", ["loss_type=sigmoid", "jobs/orpo.py", "takes orpo", "jobs/dpo.py"]),
        ("cpo", "--loss_type orpo", ["loss_type=orpo", "sigmoid, hinge, ipo, simpo", "jobs/dpo.py"]),
        ("cpo", "--no_reference_free", ["reference_free=false", "jobs/dpo.py"]),
    ],
)
def test_a_job_refuses_the_objectives_of_other_jobs(job: str, command: str, words: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        parse(command.split(), job)
    for word in words:
        assert word in str(caught.value)
