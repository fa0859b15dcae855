"""The device that a worker computes on."""

import pytest
import torch

from raydpo.errors import ModelError
from raydpo.models.device import device


def test_a_worker_without_a_gpu_uses_the_cpu() -> None:
    assert device(gpu=False) == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_torch_cannot_use_is_an_error() -> None:
    with pytest.raises(ModelError, match="install a CUDA build of torch"):
        device(gpu=True)
