"""What a process of a run loads before it can work: each import is paid again in every actor and every worker."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"deepspeed", "peft", "ray", "torch", "transformers"}


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("raydpo.config", set()),  # `--help`, and a mistake in an option, are answered at once
        ("raydpo.feed.actor", {"ray"}),  # the first update waits for the actor that gives batches
        ("raydpo.training.task", set()),  # Ray Train's controller reads it before it asks for workers
        ("raydpo.reference.scorer", {"torch", "transformers"}),
        ("raydpo.training.worker", {"ray", "torch", "transformers"}),  # peft only for an adapter, DeepSpeed in a worker
    ],
)
def test_a_module_loads_only_what_its_process_needs(module: str, allowed: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert HEAVY & set(result.stdout.split()) == allowed
