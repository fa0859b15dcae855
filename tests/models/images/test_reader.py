"""Reading images from the store, and putting them together."""

from pathlib import Path

import numpy as np
import pytest
import torch

from raydpo.data.images.store import image_url, write
from raydpo.errors import StorageError
from raydpo.models.images.reader import ImageReader, collate_images


def test_an_image_is_read_once_while_there_is_room(tmp_path: Path) -> None:
    for digest in ("a", "b", "c"):
        write(str(tmp_path), digest, {"pixel_values": np.full((1, 4), ord(digest), dtype=np.float32)})
    read = ImageReader(str(tmp_path), kept_bytes=32)
    assert [read(digest)["pixel_values"][0, 0] for digest in "abab"] == [97, 98, 97, 98]
    Path(image_url(str(tmp_path), "a")).unlink()
    read("a")
    read("c")
    read("c")
    Path(image_url(str(tmp_path), "b")).unlink()
    with pytest.raises(StorageError, match=r"has no image b.*start the run again"):
        read("b")


def test_images_of_different_sizes_are_filled_up_at_the_end() -> None:
    small = {"pixel_values": np.ones((1, 2, 3), dtype=np.float32), "image_sizes": np.array([[2, 3]])}
    large = {"pixel_values": np.full((2, 4, 3), 2, dtype=np.float32), "image_sizes": np.array([[4, 3], [4, 3]])}
    found = collate_images([small, large])
    assert found["image_sizes"].tolist() == [[2, 3], [4, 3], [4, 3]]
    assert found["pixel_values"].shape == (3, 4, 3)
    torch.testing.assert_close(found["pixel_values"][0], torch.tensor([[1.0] * 3] * 2 + [[0.0] * 3] * 2))
    assert found["pixel_values"][1:].eq(2).all()
