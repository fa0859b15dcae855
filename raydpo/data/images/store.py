"""The store of processed images: what a model's processor made of each different image, once per image.

The file of an image is `images/<digest>.safetensors` in cache_dir. Its digest is that of the picture and of the
processor (see `processing.ImageProcessing.digest`), so a file that exists is right and is never written again.
"""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load, save

from raydpo.errors import DamagedFile
from raydpo.runtime import storage
from raydpo.runtime.storage import File

IMAGES = "images"
"""Name of the folder of processed images in cache_dir."""
_ENDING = ".safetensors"
_TEXT = "text"
_HEADER_LENGTH_BYTES = 8
_METADATA = "__metadata__"

Tensors = dict[str, npt.NDArray[Any]]
"""Arrays by the names of the processor's output, such as pixel_values and image_grid_thw."""


def image_url(cache_dir: str, digest: str) -> str:
    """Return the path or URL of the file of an image."""
    return storage.join(cache_dir, IMAGES, f"{digest}{_ENDING}")


def exists(cache_dir: str, digest: str) -> bool:
    """Return whether an image is in the store."""
    return storage.exists(image_url(cache_dir, digest))


def digests(cache_dir: str) -> frozenset[str]:
    """Return the digests of all images in the store."""
    names = (file.url.rpartition("/")[2] for file in image_files(cache_dir))
    return frozenset(name.removesuffix(_ENDING) for name in names)


def image_files(cache_dir: str) -> list[File]:
    """Return the files of all images in the store, the oldest first."""
    found = storage.files(storage.join(cache_dir, IMAGES))
    return sorted((file for file in found if file.url.endswith(_ENDING)), key=lambda file: file.modified)


def write(cache_dir: str, digest: str, tensors: Mapping[str, npt.NDArray[Any]], text: str = "") -> None:
    """Write what the processor returned for an image, and the text that stands for the image in a prompt.

    Raises StorageError if the file cannot be written.
    """
    arrays = {name: np.ascontiguousarray(values) for name, values in tensors.items()}
    storage.write_bytes(image_url(cache_dir, digest), save(arrays, metadata={_TEXT: text}))


def read(cache_dir: str, digest: str) -> Tensors:
    """Return what the processor returned for an image, each array with the leading dimension of a call with one image.

    Raises FileNotFoundError if the image is not in the store, and DamagedFile if its file is not whole.
    """
    url = image_url(cache_dir, digest)
    content = storage.read_bytes(url)
    try:
        tensors: Tensors = load(content)
    except SafetensorError as error:
        raise DamagedFile(f"{url} is damaged ({error}); delete it and run again to recreate it") from error
    return tensors


def read_text(cache_dir: str, digest: str) -> str | None:
    """Return the text that stands for an image in a prompt, from the beginning of its file.

    Return None if the image is not in the store, or its file is not whole.
    """
    url = image_url(cache_dir, digest)
    size = storage.size(url)
    if size is None or size < _HEADER_LENGTH_BYTES:
        return None
    length = int.from_bytes(storage.read_range(url, 0, _HEADER_LENGTH_BYTES), "little")
    start = _HEADER_LENGTH_BYTES + length
    if start > size:
        return None
    try:
        header = json.loads(storage.read_range(url, _HEADER_LENGTH_BYTES, start))
        stops = [entry["data_offsets"][1] for name, entry in header.items() if name != _METADATA]
        text: str = header[_METADATA][_TEXT]
    except (ValueError, KeyError, TypeError, IndexError):
        return None
    return text if size == start + max(stops, default=0) else None
