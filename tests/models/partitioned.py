"""A stand-in for ZeRO-3, for tests of what reads a model's weights."""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import nn


class Partitioned:
    """Plays ZeRO-3 on a model: its parameters have no content but inside `gather`, which notes what was whole when."""

    def __init__(self, model: nn.Module) -> None:
        self.groups: list[list[tuple[int, ...]]] = []
        self.whole_bytes = 0
        self.most_whole_bytes = 0
        self._contents = {id(parameter): parameter.data for parameter in model.parameters()}
        for parameter in model.parameters():
            parameter.ds_shape = parameter.shape  # type: ignore[attr-defined]
            parameter.data = torch.empty(0, dtype=parameter.dtype)

    @contextmanager
    def gather(self, parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        """Give each parameter a copy of its content, and overwrite that copy at the end."""
        assert len({id(parameter) for parameter in parameters}) == len(parameters), "a parameter is gathered twice"
        assert self.whole_bytes == 0, "gathers are nested"
        self.groups.append([tuple(parameter.ds_shape) for parameter in parameters])  # type: ignore[attr-defined]
        for parameter in parameters:
            parameter.data = self._contents[id(parameter)].clone()
            self.whole_bytes += parameter.nbytes
        self.most_whole_bytes = max(self.most_whole_bytes, self.whole_bytes)
        yield
        for parameter in parameters:
            parameter.data.fill_(float("nan"))  # whoever kept it, or a view of it, holds rubbish now
            parameter.data = torch.empty(0, dtype=parameter.dtype)
        self.whole_bytes = 0


def whole(parameters: Sequence[nn.Parameter]) -> AbstractContextManager[object]:
    """The gather of a model that is not partitioned."""
    return nullcontext()
