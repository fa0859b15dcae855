"""What Ray, DeepSpeed, feed and log cost: the job's updates against a bare torch loop over the same micro-batches.

Two commands, each a process of its own: `run CAPTURE FLAGS...` is jobs/dpo.py that also writes down what its train
workers are given; `bare CAPTURE RESULT` trains on that without any of them.
"""

import dataclasses
import json
import pickle
import sys
import time
from pathlib import Path
from typing import Any
from unittest import mock

from tests.bench.memory import watch
from tests.bench.sides import Setup, new_folder, run_raydpo

THIS = "tests.bench.overhead"


def measure(setup: Setup, rows: Path) -> dict[str, float]:
    """Seconds an update, of the job and of the bare loop, the first update of each left out."""
    folder = new_folder(setup, "overhead")
    capture, result = folder / "capture", folder / "result.json"
    figures = run_raydpo(setup, rows, {}, entry=("-m", THIS, "run", str(capture)))
    command = [sys.executable, "-m", THIS, "bare", str(capture), str(result)]
    watch(command, folder / "log", env=setup.env, gpu=setup.gpu)
    updates = json.loads(result.read_text())[1:]
    assert figures.training is not None
    return {"job": setup.global_batch / figures.training, "bare": sum(updates) / len(updates)}


def run(capture: Path, flags: list[str]) -> int:
    """jobs/dpo.py with the flags, in this process -> exit status."""
    from raydpo.cli.run import main
    from raydpo.feed.actor import start_feed
    from raydpo.training.trainer import fit

    given: list[Any] = []

    def starting(*arguments: Any) -> Any:
        given.extend(arguments)
        return start_feed(*arguments)

    def fitting(task: Any) -> Any:
        alone = dataclasses.replace(task, feed=None)  # an actor's handle means nothing outside its job
        capture.write_bytes(pickle.dumps((given, alone)))
        return fit(task)

    with mock.patch("raydpo.stages.feeds.start_feed", starting), mock.patch("raydpo.training.trainer.fit", fitting):
        return main(flags)


def bare(capture: Path, result: Path) -> None:
    """The updates of a captured run by torch alone; writes the seconds of each as JSON.

    As in the job: gradients are clipped, each update's loss and norm are read, and updates that are logged compute what
    a line of metrics says of tokens.
    """
    import torch

    from raydpo.feed.batches import BatchSource
    from raydpo.objectives.objective import pair_losses
    from raydpo.training import policy as policies
    from raydpo.training.step import forward

    source, task = pickle.loads(capture.read_bytes())
    batches = _batches(BatchSource(*source), task.schedule.end)
    policy, _ = policies.build_policy(task)
    engine = Bare(policy.train())
    optim, loss = task.job.optim, task.job.loss
    optimizer = torch.optim.AdamW(policy.parameters(), lr=optim.learning_rate, weight_decay=0.0)
    seconds = []
    for step, batch in enumerate(batches, start=1):
        logging = step in (1, len(batches)) or step % task.job.run.logging_steps == 0
        began = time.monotonic()
        values = []
        for micro_batch in batch.micro_batches:
            _, pairs = forward(engine, micro_batch, loss, batch.mean_nll_tokens, with_statistics=logging)
            part = pair_losses(pairs, loss).sum() / batch.pairs
            part.backward()
            values.append(part.detach())
        norm = torch.nn.utils.clip_grad_norm_(policy.parameters(), optim.max_grad_norm)
        optimizer.step()
        optimizer.zero_grad()
        float(norm), float(sum(values))
        seconds.append(time.monotonic() - began)
    result.write_text(json.dumps(seconds))


def _batches(source: Any, end: int) -> list[Any]:
    """All global batches, as the one rank gets them."""
    batches, position = [], 0
    while position < end:
        batches.append(source.rank_batches(position)[0])
        position = batches[-1].stop
    return batches


class Bare:
    """What `forward` needs of an engine: the module and its device."""

    def __init__(self, policy: Any) -> None:
        """Moves the policy to the GPU, where there is one."""
        import torch

        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._policy = policy.to(self.device)

    def __call__(self, *inputs: Any) -> Any:
        """A forward."""
        return self._policy(*inputs)


if __name__ == "__main__":
    if sys.argv[1] == "run":
        sys.exit(run(Path(sys.argv[2]), sys.argv[3:]))
    bare(Path(sys.argv[2]), Path(sys.argv[3]))
