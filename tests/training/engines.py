"""A DeepSpeed engine around a small model in this process, by the options of a run, without Ray."""

import os
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from raydpo import config
from raydpo.runtime.resources import WorkerGroup
from raydpo.training import deepspeed_engine
from raydpo.training.deepspeed_config import deepspeed_config, with_deepspeed_file

GROUP = WorkerGroup(1, 0, 1, {}, {})
WIDTH = 6


class Regression(nn.Module):
    """Two linear layers with a norm between them; the forward returns the mean squared error of a fixed target."""

    def __init__(self, width: int = WIDTH) -> None:
        """Give every parameter a fixed random value."""
        super().__init__()
        torch.manual_seed(5)
        self.layers = nn.Sequential(nn.Linear(4, width), nn.LayerNorm(width), nn.Linear(width, 1))
        for parameter in self.parameters():
            nn.init.normal_(parameter, 0.5, 0.3)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the loss for inputs [B, 4]."""
        return ((self.layers(inputs) - inputs.sum(1, keepdim=True)) ** 2).mean()


def inputs(step: int) -> Tensor:
    """Return the inputs of update `step`, [8, 4]."""
    return torch.randn(8, 4, generator=torch.Generator().manual_seed(step))


def task_of(total_steps: int, **options: Any) -> Any:
    """Return what a train worker's engine needs of a task with these options, and raise what a plan raises."""
    job, file, _ = with_deepspeed_file(config.from_flat(options), gpu=False, num_workers=1)
    return SimpleNamespace(
        job=job,
        deepspeed_config=deepspeed_config(job, file, GROUP, WIDTH),
        schedule=SimpleNamespace(total_steps=total_steps),
        policy=SimpleNamespace(gpu=False),
        fingerprint={"data": "abc", "reference": "def"},
    )


class Trained:
    """An engine, and what its updates gave."""

    def __init__(self, total_steps: int, width: int = WIDTH, **options: Any) -> None:
        """Start DeepSpeed in this process, which must be the only rank of a process group."""
        os.environ |= {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1"}
        deepspeed_engine.prepare_process(gpu=False)
        self.model = Regression(width)
        self.task = task_of(total_steps, **options)
        self.wrapper = deepspeed_engine.DeepSpeedEngine(self.model, self.task)
        self.losses: list[float] = []
        self.norms: list[float] = []
        self.rates: list[float] = []

    def update(self, steps: Sequence[int]) -> "Trained":
        """Make these updates, counted from 1."""
        engine = self.wrapper.engine
        for step in steps:
            loss = engine(inputs(step))
            engine.backward(loss)
            norm, rate = self.wrapper.step()
            self.losses.append(loss.item())
            self.norms.append(norm)
            self.rates.append(rate)
        return self

    @property
    def weights(self) -> dict[str, Tensor]:
        """The weights as they are now."""
        return {name: parameter.detach().clone() for name, parameter in self.model.named_parameters()}


def plain_weights(
    rates: Sequence[float], optimizer: type[torch.optim.Optimizer], **arguments: Any
) -> dict[str, Tensor]:
    """Return the weights after updates with these rates by a plain torch loop; vectors have no weight decay.

    `weight_decay` is that of every update; `decays` has one for each.
    """
    model = Regression()
    decay = arguments.pop("weight_decay", 0.0)
    decays = arguments.pop("decays", [decay] * len(rates))
    groups = [
        {"params": [part for part in model.parameters() if part.dim() > 1], "weight_decay": decay},
        {"params": [part for part in model.parameters() if part.dim() <= 1], "weight_decay": 0.0},
    ]
    steps = optimizer(groups, lr=0.0, **arguments)
    for step, rate in enumerate(rates, start=1):
        for group in steps.param_groups:
            group["lr"] = rate
        steps.param_groups[0]["weight_decay"] = decays[step - 1]
        steps.zero_grad()
        model(inputs(step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        steps.step()
    return {name: parameter.detach() for name, parameter in model.named_parameters()}
