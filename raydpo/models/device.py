"""The device that a worker computes on."""

import torch

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
