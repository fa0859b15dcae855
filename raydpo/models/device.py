"""The device that a worker computes on."""

import ctypes
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


M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of mallopt(3)
KEPT_BYTES = 2**30


def keep_freed_memory() -> None:
    """Have the C library keep up to `KEPT_BYTES` that this process frees, for what it allocates next.

    On a CPU each activation is a fresh allocation, which glibc takes from the system and gives back page by page: a
    softmax over the vocabulary takes four times as long for it. Nothing where the C library has no such setting.
    """
    library = ctypes.CDLL(None)
    if hasattr(library, "mallopt"):
        library.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, KEPT_BYTES)


def to_device(array: Any, device: torch.device) -> Tensor:
    """A numpy array as a tensor; copied, as arrays from the object store are read-only."""
    return torch.from_numpy(array.copy()).to(device, non_blocking=True)
