"""The device that a worker computes on."""

from typing import Any

import torch
from torch import Tensor

from raydpo.errors import ModelError


def device(gpu: bool) -> torch.device:
    """The GPU that Ray gave this worker, or the CPU where it was given none.

    ModelError where it was given a GPU that torch cannot use: the run would be slow, and its numbers not those it says.
    """
    if gpu and not torch.cuda.is_available():
        raise ModelError(
            f"this worker has a GPU, but torch {torch.__version__} finds none; install a CUDA build of torch on the "
            "node, or set gpus_per_worker=0 and reference_gpus_per_worker=0"
        )
    return torch.device("cuda" if gpu else "cpu")


def to_device(array: Any, device: torch.device) -> Tensor:
    """A numpy array as a tensor; copied, as arrays from the object store are read-only."""
    return torch.from_numpy(array.copy()).to(device, non_blocking=True)
