"""Measures the overhead of Ray, DeepSpeed, feed and logging: updates of the job and of a bare torch loop are timed over
the same micro-batches.

The module has two commands, each run in its own process: `run CAPTURE FLAGS...` runs jobs/dpo.py and also saves the
inputs of its train workers; `bare CAPTURE RESULT` trains on these inputs with torch alone.
"""

import dataclasses
import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from tests.bench.measure.memory import watch
from tests.bench.measure.sides import Setup, new_folder, run_raydpo

MODULE = "tests.bench.measure.overhead"


def measure(setup: Setup, rows: Path) -> dict[str, float]:
    """Return the seconds per update of the job and of the bare loop, without the first update of each."""
    folder = new_folder(setup, "overhead")
    capture, result = folder / "capture", folder / "result.json"
    figures = run_raydpo(setup, rows, {}, entry=("-m", MODULE, "run", str(capture)))
    command = [sys.executable, "-m", MODULE, "bare", str(capture), str(result)]
    watch(command, folder / "log", env=setup.env, gpu=setup.gpu)
    updates = json.loads(result.read_text())[1:]
    assert figures.training is not None
    return {"job": setup.global_batch / figures.training, "bare": sum(updates) / len(updates)}


def run(capture: Path, flags: list[str]) -> int:
    """Run jobs/dpo.py in this process and return the exit status; the inputs of its train workers go to `capture`."""
    from raydpo.cli.run import main
    from raydpo.feed.actor import start_feed
    from raydpo.training.trainer import fit

    feed_arguments: list[Any] = []

    def recording_start_feed(*arguments: Any) -> Any:
        feed_arguments.extend(arguments)
        return start_feed(*arguments)

    def recording_fit(task: Any) -> Any:
        detached = dataclasses.replace(task, feed=None)  # an actor handle is not valid outside its Ray job
        capture.write_bytes(pickle.dumps((feed_arguments, detached)))
        return fit(task)

    with (
        mock.patch("raydpo.stages.feeds.start_feed", recording_start_feed),
        mock.patch("raydpo.training.trainer.fit", recording_fit),
    ):
        return main(flags)


def bare(capture: Path, result: Path) -> None:
    """Run the updates of a captured run with torch alone, and write the seconds of each as JSON.

    As in the job, gradients are clipped, the loss and the gradient norm of each update are read, and logged updates
    compute the statistics over the vocabulary.
    """
    import torch

    from raydpo.feed.batches import BatchSource
    from raydpo.objectives.objective import pair_losses
    from raydpo.training import policy as policies
    from raydpo.training.step import forward

    source, task = pickle.loads(capture.read_bytes())
    batches = _batches(BatchSource(*source), task.schedule.end)
    policy, _ = policies.build_policy(task)
    engine = BareEngine(policy.train())
    optim, loss = task.job.optim, task.job.loss
    optimizer = torch.optim.AdamW(policy.parameters(), lr=optim.learning_rate, weight_decay=0.0)
    seconds = []
    for step, batch in enumerate(batches, start=1):
        logging = step in (1, len(batches)) or step % task.job.run.logging_steps == 0
        start = time.monotonic()
        values = []
        for micro_batch in batch.micro_batches:
            _, pairs = forward(engine, micro_batch, loss, batch, with_statistics=logging)
            part = pair_losses(pairs, loss).sum() / batch.pairs
            part.backward()
            values.append(part.detach())
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        float(norm), float(sum(values))
        seconds.append(time.monotonic() - start)
    result.write_text(json.dumps(seconds))


def _batches(source: Any, end: int) -> list[Any]:
    """Return all global batches, as the single rank gets them."""
    batches, position = [], 0
    while position < end:
        batches.append(source.rank_batches(position)[0])
        position = batches[-1].stop
    return batches


class BareEngine:
    """The part of an engine's interface that `forward` uses: the module and its device."""

    def __init__(self, policy: Any) -> None:
        """Move the policy to the GPU, if there is one."""
        import torch

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._policy = policy.to(self.device)

    def __call__(self, *inputs: Any) -> Any:
        """Run the policy's forward."""
        return self._policy(*inputs)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        sys.exit(run(Path(sys.argv[2]), sys.argv[3:]))
    bare(Path(sys.argv[2]), Path(sys.argv[3]))
