"""A run can be started as a program, and as a submitted job on a Ray head with token authentication."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.jobs import flags, rows, write_rows

pytestmark = pytest.mark.ray

ROOT = Path(__file__).parents[2]
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"


def options(model: Path, folder: Path) -> list[str]:
    return flags(
        {
            "model_name_or_path": model,
            "dataset_name": write_rows(folder / "pairs.jsonl", rows(8)),
            "output_dir": folder / "run",
            "cache_dir": folder / "cache",
            "num_train_epochs": 1,
            "per_device_train_batch_size": 4,
            "gradient_checkpointing": False,
        }
    )


def check_result(folder: Path) -> None:
    summary = json.loads((folder / "run" / "summary.json").read_text())
    assert summary["rows"]["pairs"] == 8
    assert summary["training"]["updates"] == 2
    assert (folder / "run" / "model" / "model.safetensors").exists()


def dpo(*arguments: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    # RAY_ADDRESS is removed, as the program starts its own Ray if it finds none.
    variables = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | (environment or {})
    return subprocess.run(
        [sys.executable, "jobs/dpo.py", *arguments],
        cwd=ROOT,
        env=variables,
        capture_output=True,
        text=True,
        timeout=300,
    )


def test_a_run_starts_as_a_program(tiny_model: Path, tmp_path: Path) -> None:
    result = dpo(*options(tiny_model, tmp_path), environment={"RAY_ADDRESS": "local"})
    assert result.returncode == 0, result.stderr
    check_result(tmp_path)
    lines = result.stdout.splitlines()
    for stage in ("Tokenizing", "Reference", "Training"):
        assert 1 <= sum(line.startswith(stage) for line in lines) <= 8, result.stdout
    assert str(tmp_path / "run" / "model") in result.stdout
    assert len(lines) < 30, "too many lines on the console"
    assert result.stderr.strip() == "", "libraries must not print messages"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1e-5"], "learning_rate"),
        (["--beta", "-1"], r"beta.*-1.*above 0"),
        (["--model_name_or_path", "/nowhere"], r"/nowhere"),
        (["--dataset_name", "/nowhere/*.jsonl", "--model_name_or_path", "MODEL"], r"/nowhere"),
    ],
)
def test_invalid_input_gives_one_error_line_without_a_traceback(
    arguments: list[str], message: str, tiny_model: Path
) -> None:
    command_line = [str(tiny_model) if argument == "MODEL" else argument for argument in arguments]
    if "--dataset_name" not in command_line:
        command_line += ["--dataset_name", __file__]
    result = dpo(*command_line, environment={"RAY_ADDRESS": "local"})
    assert result.returncode in (1, 2)
    assert "Traceback" not in result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, result.stderr
    assert re.search(message, errors[0])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head with token authentication: the address of its dashboard, and the environment variables to reach it."""
    port, dashboard, agent = free_port(), free_port(), free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"PATH": PATH, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test"}
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "1"
    # A short path, because the path of a Unix socket is limited to 107 characters.
    temporary = f"/tmp/ray-head-{os.getpid()}"
    command = ["ray", "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1"]
    # By default the job agent listens on a fixed port, which the other tests' Ray on this machine already uses.
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += ["--num-cpus=2", f"--temp-dir={temporary}"]
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        deadline = time.monotonic() + 60
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def submit(address: str, environment: dict[str, str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = ["ray", "job", "submit", "--address", address, "--working-dir", ".", "--", "python", "jobs/dpo.py"]
    deadline = time.monotonic() + 90
    while True:
        result = subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        # Just after its start, a head has no agent yet that accepts jobs.
        if "No available agent" not in result.stdout + result.stderr or time.monotonic() > deadline:
            return result
        time.sleep(1)


def test_a_run_starts_as_a_submitted_job(head: tuple[str, dict[str, str]], tiny_model: Path, tmp_path: Path) -> None:
    address, environment = head
    refused = submit(address, {**environment, "RAY_AUTH_TOKEN": "another"}, options(tiny_model, tmp_path))
    assert refused.returncode != 0
    result = submit(address, environment, options(tiny_model, tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    assert "succeeded" in result.stdout
    check_result(tmp_path)
