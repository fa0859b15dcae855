"""The device of a worker."""

import pytest
import torch

from raydpo.errors import ModelError
from raydpo.models.device import device


def test_the_cpu_where_no_gpu_was_given() -> None:
    assert device(gpu=False) == torch.device("cpu")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_gpu_that_torch_cannot_use_is_no_reason_to_take_the_cpu() -> None:
    with pytest.raises(ModelError, match="install a CUDA build of torch"):
        device(gpu=True)
