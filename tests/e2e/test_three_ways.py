"""The ways to start a run: as a program of its own, and as a job on a Ray head with token authentication."""

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
    # Without RAY_ADDRESS, and with a TMPDIR of its own: a program that finds no Ray starts one.
    own = {key: value for key, value in os.environ.items() if key != "RAY_ADDRESS"} | (environment or {})
    return subprocess.run(
        [sys.executable, "jobs/dpo.py", *arguments], cwd=ROOT, env=own, capture_output=True, text=True, timeout=300
    )


def test_as_a_program(tiny_model: Path, tmp_path: Path) -> None:
    done = dpo(*options(tiny_model, tmp_path), environment={"RAY_ADDRESS": "local"})
    assert done.returncode == 0, done.stderr
    check_result(tmp_path)
    lines = done.stdout.splitlines()
    for stage in ("Tokenizing", "Reference", "Training"):
        assert 1 <= sum(line.startswith(stage) for line in lines) <= 8, done.stdout
    assert str(tmp_path / "run" / "model") in done.stdout
    assert len(lines) < 30, "a flood of messages"
    assert done.stderr.strip() == "", "messages of libraries"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--learning_rat", "1e-5"], "learning_rate"),
        (["--beta", "-1"], r"beta.*-1.*above 0"),
        (["--model_name_or_path", "/nowhere"], r"/nowhere"),
        (["--dataset_name", "/nowhere/*.jsonl", "--model_name_or_path", "MODEL"], r"/nowhere"),
    ],
)
def test_wrong_input_is_one_line_without_a_traceback(arguments: list[str], message: str, tiny_model: Path) -> None:
    given = [str(tiny_model) if argument == "MODEL" else argument for argument in arguments]
    if "--dataset_name" not in given:
        given += ["--dataset_name", __file__]
    done = dpo(*given, environment={"RAY_ADDRESS": "local"})
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    errors = [line for line in done.stderr.splitlines() if line.startswith("error:")]
    assert len(errors) == 1, done.stderr
    assert re.search(message, errors[0])


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@pytest.fixture
def head(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, dict[str, str]]]:
    """A Ray head with token authentication -> its dashboard's address, the environment to reach it."""
    port, dashboard, agent = free_port(), free_port(), free_port()
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_")}
    environment |= {"PATH": PATH, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "of-this-test"}
    environment["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"] = "1"
    # Short, as the path of a Unix socket has 107 characters at most.
    temporary = f"/tmp/ray-head-{os.getpid()}"
    command = ["ray", "start", "--head", "--block", f"--port={port}", "--dashboard-host=127.0.0.1"]
    # The agent that takes jobs has a fixed port by default, which the Ray of the other tests on this machine holds.
    command += [f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={agent}"]
    command += ["--num-cpus=2", f"--temp-dir={temporary}"]
    log = tmp_path_factory.mktemp("head") / "log"
    with log.open("w") as stream:
        process = subprocess.Popen(
            command, env=environment, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
        )
    try:
        end = time.monotonic() + 60
        while "Ray runtime started" not in log.read_text():
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < end, log.read_text()
            time.sleep(0.2)
        yield f"http://127.0.0.1:{dashboard}", environment
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        process.wait(timeout=60)


def submit(address: str, environment: dict[str, str], arguments: list[str]) -> subprocess.CompletedProcess[str]:
    command = ["ray", "job", "submit", "--address", address, "--working-dir", ".", "--", "python", "jobs/dpo.py"]
    end = time.monotonic() + 90
    while True:
        done = subprocess.run(
            [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300
        )
        # A head that has just started has no agent yet that takes jobs.
        if "No available agent" not in done.stdout + done.stderr or time.monotonic() > end:
            return done
        time.sleep(1)


def test_as_a_submitted_job(head: tuple[str, dict[str, str]], tiny_model: Path, tmp_path: Path) -> None:
    address, environment = head
    refused = submit(address, {**environment, "RAY_AUTH_TOKEN": "another"}, options(tiny_model, tmp_path))
    assert refused.returncode != 0
    done = submit(address, environment, options(tiny_model, tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout
    check_result(tmp_path)
