"""Reading what a model's image processor made of images, and putting the images of a forward together."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raydpo.data.images.store import read
from raydpo.errors import StorageError

Arrays = Mapping[str, npt.NDArray[Any]]
"""The output of an image processor for one image, by its names: pixel_values, image_grid_thw and others."""

KEPT_BYTES = 512 * 2**20
"""Memory of a worker for images that it has read, in bytes: prompts of one image are often near each other."""


class ImageReader:
    """Reads images from the store in `cache_dir`, and keeps those that were read last."""

    def __init__(self, cache_dir: str, kept_bytes: int = KEPT_BYTES) -> None:
        self._cache_dir = cache_dir
        self._kept_bytes = kept_bytes
        self._kept: OrderedDict[str, Arrays] = OrderedDict()

    def __call__(self, digest: str) -> Arrays:
        """Return the arrays of an image. Raises StorageError if the store has none."""
        if digest not in self._kept:
            try:
                self._kept[digest] = read(self._cache_dir, digest)
            except FileNotFoundError as error:
                raise StorageError(
                    f"cache_dir={self._cache_dir} has no image {digest}, which tokenization put there; keep cache_dir "
                    "while a run goes on, put it where every node sees it, and start the run again"
                ) from error
        self._kept.move_to_end(digest)
        while len(self._kept) > 1 and sum(map(_size, self._kept.values())) > self._kept_bytes:
            self._kept.popitem(last=False)
        return self._kept[digest]


def open_images(cache_dir: str | None) -> ImageReader | None:
    """Return the reader of the images in `cache_dir`; None without one, for a model that takes no images."""
    return None if cache_dir is None else ImageReader(cache_dir)


def _size(arrays: Arrays) -> int:
    return sum(array.nbytes for array in arrays.values())


def collate_images(images: Sequence[Arrays]) -> dict[str, Tensor]:
    """Return the arrays of images as those of a call of the processor with all of them: put together along dimension 0.

    Where images differ in size, number of tiles or of patches, the smaller ones are filled up with 0 at the end of each
    dimension, as processors do it; the sizes and masks that come with the pixels tell the model what is filled.
    """
    return {name: torch.from_numpy(_joined([image[name] for image in images])) for name in images[0]}


def _joined(arrays: Sequence[npt.NDArray[Any]]) -> npt.NDArray[Any]:
    """Return the arrays concatenated along dimension 0, a copy."""
    arrays = [np.atleast_1d(array) for array in arrays]
    largest = np.max([array.shape[1:] for array in arrays], axis=0) if arrays[0].ndim > 1 else ()
    return np.concatenate([_filled(array, tuple(largest)) for array in arrays])


def _filled(array: npt.NDArray[Any], shape: tuple[int, ...]) -> npt.NDArray[Any]:
    """Return an array [rows, ...] filled up with 0 to [rows, *shape]."""
    missing = [(0, 0), *((0, int(size) - own) for size, own in zip(shape, array.shape[1:], strict=True))]
    return np.pad(array, missing) if any(end for _, end in missing) else array
