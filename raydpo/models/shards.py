"""Weights written as safetensors shards of bounded size, with an index."""

import os
from collections.abc import Mapping

import torch
from safetensors.torch import save_file
from torch import Tensor

from raydpo.errors import ModelError
from raydpo.runtime import storage


def copy_to_cpu(tensor: Tensor) -> Tensor:
    """Return a contiguous copy: the gathered weight is released, and tensors in one file must not share memory."""
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu").copy_(tensor)


class ShardWriter:
    """A writer that collects tensors into shards of bounded size and writes each shard as soon as it is full."""

    def __init__(self, folder: str, max_bytes: int) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._held: dict[str, Tensor] = {}
        self._held_bytes = 0
        self._total_bytes = 0
        self._shapes: list[dict[str, tuple[int, ...]]] = []

    def add(self, name: str, tensor: Tensor) -> None:
        """Copy a tensor into the current shard; if it does not fit, write that shard and start a new one."""
        if self._held and self._held_bytes + tensor.nbytes > self._max_bytes:
            self._flush()
        self._held[name] = copy_to_cpu(tensor)
        self._held_bytes += tensor.nbytes

    def finish(self, expected: Mapping[str, tuple[int, ...]]) -> None:
        """Write the last shard, name all shard files, and write their index if there are several.

        Raises ModelError if the names and shapes written differ from `expected`.
        """
        self._flush()
        written = {name: shape for shard in self._shapes for name, shape in shard.items()}
        if different := sorted(dict(written.items() ^ expected.items())):
            raise ModelError(
                f"{len(different)} weights have other names or shapes than planned, first {different[0]}; the layout "
                "conversion of this architecture involves more than one layer: please report it"
            )
        count = len(self._shapes)
        if count == 1:
            os.rename(self._part(0), os.path.join(self._folder, "model.safetensors"))
            return
        files = [f"model-{number:05d}-of-{count:05d}.safetensors" for number in range(1, count + 1)]
        for number, file in enumerate(files):
            os.rename(self._part(number), os.path.join(self._folder, file))
        weight_map = {name: file for file, shard in zip(files, self._shapes, strict=True) for name in shard}
        index = {"metadata": {"total_size": self._total_bytes}, "weight_map": dict(sorted(weight_map.items()))}
        storage.write_json(os.path.join(self._folder, "model.safetensors.index.json"), index)

    def _part(self, number: int) -> str:
        """Return the temporary path of a shard."""
        return os.path.join(self._folder, f"part-{number}")  # its final name contains the number of shards

    def _flush(self) -> None:
        """Write the current shard and start a new one."""
        save_file(self._held, self._part(len(self._shapes)), metadata={"format": "pt"})
        self._shapes.append({name: tuple(tensor.shape) for name, tensor in self._held.items()})
        self._total_bytes += self._held_bytes
        self._held, self._held_bytes = {}, 0
