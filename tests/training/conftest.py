"""A fixture of tests that train in this process."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(scope="module")
def single_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Make this process the only rank of a process group."""
    group = tmp_path_factory.mktemp("group") / "group"
    torch.distributed.init_process_group("gloo", init_method=f"file://{group}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()
