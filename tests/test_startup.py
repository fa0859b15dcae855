"""The packages that the processes of a run import at start: every actor and every worker pays for each import again."""

import subprocess
import sys
from pathlib import Path

import pytest

HEAVY = {"deepspeed", "peft", "ray", "torch", "transformers"}


@pytest.mark.parametrize(
    ("module", "allowed"),
    [
        ("raydpo.config", set()),  # `--help` and errors in options appear without delay
        ("raydpo.feed.actor", {"ray"}),  # the first update waits for the actor that serves batches
        ("raydpo.training.task", set()),  # Ray Train's controller imports it before it requests workers
        ("raydpo.reference.scorer", {"torch", "transformers"}),
        (
            "raydpo.training.worker",
            {"ray", "torch", "transformers"},
        ),  # peft only with an adapter, DeepSpeed once it trains
    ],
)
def test_a_module_loads_only_what_its_process_needs(module: str, allowed: set[str]) -> None:
    code = f"import sys, {module}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=Path(__file__).parents[1], capture_output=True, text=True, check=True
    )
    assert HEAVY & set(result.stdout.split()) == allowed
