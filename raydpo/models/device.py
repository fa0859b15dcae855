"""The torch device of a worker, and copying arrays to it."""

from typing import Any

import torch
from torch import Tensor

from raydpo.errors import ModelError


def device(gpu: bool) -> torch.device:
    """Return the GPU that Ray assigned to this worker, or the CPU if it assigned none.

    Raises ModelError if torch cannot use the assigned GPU: a silent fall-back to the CPU would make the run slow and
    its reported numbers wrong.
    """
    if gpu and not torch.cuda.is_available():
        raise ModelError(
            f"this worker was assigned a GPU, but torch {torch.__version__} finds none; install a CUDA build of torch "
            "on the node, or set gpus_per_worker=0 and reference_gpus_per_worker=0"
        )
    return torch.device("cuda" if gpu else "cpu")


def to_device(array: Any, device: torch.device) -> Tensor:
    """Copy a numpy array to a device as a tensor; the copy is needed as arrays from the object store are read-only."""
    return torch.from_numpy(array.copy()).to(device, non_blocking=True)
