"""An imitation of ZeRO-3, for tests of code that reads the weights of a model."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn


class Partitioned:
    """Imitates ZeRO-3 on a model: parameters are empty outside `gather`, which records what is gathered together."""

    def __init__(self, model: nn.Module) -> None:
        self.groups: list[list[tuple[int, ...]]] = []
        self.gathered_bytes = 0
        self.peak_gathered_bytes = 0
        self._contents = {id(parameter): parameter.data for parameter in model.parameters()}
        for parameter in model.parameters():
            parameter.ds_shape = parameter.shape  # type: ignore[attr-defined]
            parameter.data = torch.empty(0, dtype=parameter.dtype)

    @contextmanager
    def gather(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Give each parameter a copy of its content, and overwrite that copy with NaN at the end."""
        assert len({id(parameter) for parameter in parameters}) == len(parameters), "a parameter is gathered twice"
        assert self.gathered_bytes == 0, "gathers are nested"
        self.groups.append([tuple(parameter.ds_shape) for parameter in parameters])  # type: ignore[attr-defined]
        for parameter in parameters:
            parameter.data = self._contents[id(parameter)].clone()
            self.gathered_bytes += parameter.nbytes
        self.peak_gathered_bytes = max(self.peak_gathered_bytes, self.gathered_bytes)
        yield
        for parameter in parameters:
            parameter.data.fill_(float("nan"))  # a reference to it, or to a view of it, sees NaN now
            parameter.data = torch.empty(0, dtype=parameter.dtype)
        self.gathered_bytes = 0


def no_gather(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[object]:
    """Return a context that gathers nothing, for a model that is not partitioned."""
    return nullcontext()
