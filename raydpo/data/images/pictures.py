"""Open the pictures of rows: from bytes, base64, data: URLs, paths beside the shard, and URLs of fsspec."""

import base64
import binascii
import io
import os
import posixpath
import re
import struct
import zlib
from typing import Any
from urllib.parse import unquote_to_bytes

import fsspec

from raydpo.data.dialects.pair import RowError
from raydpo.errors import DataError
from raydpo.runtime import storage

_UNREADABLE: tuple[type[Exception], ...] = (OSError, ValueError)
try:  # the errors of fsspec's HTTP client, which are no OSError
    from aiohttp import ClientError
except ImportError:
    pass
else:
    _UNREADABLE = (*_UNREADABLE, ClientError)

MISSING, UNREAD, BROKEN = "image not found", "image cannot be read", "broken image"
"""Kinds of faults of rows."""
_BASE64 = re.compile(r"[A-Za-z0-9+/\s]+=*\s*")
_BASE64_STARTS = ("/9j/", "iVBORw0KGgo", "R0lGOD", "UklGR", "SUkqA", "TU0AK", "Qk")
"""How the base64 of JPEG, PNG, GIF, WebP, TIFF and BMP begins."""
_BASE64_CHARACTERS = 64
"""Length from which text of the letters of base64 alone may be a picture and no path."""
_SHOWN = 120
_BROKEN = (SyntaxError, ValueError, EOFError, struct.error, zlib.error, IndexError, OverflowError, MemoryError)
"""Exceptions, besides OSError, that Pillow raises on a damaged file."""


def open_picture(source: Any, shard_url: str) -> Any:
    """Return the picture at a source (see `dialects.images`) as a PIL image in RGB, turned as its EXIF data says.

    A relative path is one from the folder of the shard. Raises RowError if there is no such picture or it is damaged,
    and DataError if the fsspec client of a URL is not installed.
    """
    from PIL import Image, ImageOps  # Pillow is an extra of its own

    if isinstance(source, Image.Image):
        picture, name = source, "a picture"
    else:
        content, name = _content(source, shard_url)
        try:
            picture = Image.open(io.BytesIO(content))
            picture.load()
        except Image.DecompressionBombError as error:
            raise RowError(BROKEN, f"{name}: {error}") from error
        except (OSError, *_BROKEN) as error:
            raise RowError(
                BROKEN, f"{name} ({len(content):,} bytes) is no picture that Pillow opens: {type(error).__name__}"
            ) from error
    turned = ImageOps.exif_transpose(picture)
    return turned if turned.mode == "RGB" else turned.convert("RGB")


def stamped_file(source: Any, shard_url: str) -> tuple[str, str] | None:
    """Return the path of the local file that a source names and its stamp; None for a source of another kind."""
    if not isinstance(source, str) or not names_a_file(source):
        return None
    try:
        filesystem, path = _place(source, shard_url)
    except (ValueError, ImportError):
        return None
    return (path, stamp(path)) if "file" in filesystem.protocol else None


def stamp(path: str) -> str:
    """Return the size of a local file and the time of its last change; empty if there is none."""
    try:
        status = os.stat(path)
    except OSError:
        return ""
    return f"{status.st_size} {status.st_mtime_ns}"


def names_a_file(text: str) -> bool:
    """Return whether a source given as text is a path or URL, and not the picture itself."""
    return not text.startswith("data:") and not _is_base64(text)


def _content(source: Any, shard_url: str) -> tuple[bytes, str]:
    """Return the bytes of a picture, and a name for messages."""
    if isinstance(source, bytes | bytearray):
        return bytes(source), "an image given as bytes"
    text = str(source)
    if text.startswith("data:"):
        return _of_data_url(text), "an image given as a data: URL"
    if _is_base64(text):
        return _of_base64(text), "an image given as base64"
    return _of_file(text, shard_url), _shown(text)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else f"{text[:_SHOWN]}...")


def _is_base64(text: str) -> bool:
    return (
        len(text) >= _BASE64_CHARACTERS
        and text.lstrip().startswith(_BASE64_STARTS)
        and _BASE64.fullmatch(text) is not None
    )


def _of_data_url(text: str) -> bytes:
    head, comma, body = text.partition(",")
    if not comma:
        raise RowError(BROKEN, f"the data: URL {_shown(text)} has no comma before its content")
    return _of_base64(body) if head.endswith(";base64") else unquote_to_bytes(body)


def _of_base64(text: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise RowError(BROKEN, f"{_shown(text)} is not base64: {error}") from error


def _of_file(name: str, shard_url: str) -> bytes:
    """Return the bytes of the file at a path or URL. Raises RowError where it cannot be read."""
    try:
        filesystem, path = _place(name, shard_url)
        return bytes(filesystem.cat_file(path))
    except FileNotFoundError as error:
        raise RowError(MISSING, f"{_shown(name)}; looked for {_shown(str(error.filename or error))}") from error
    except ImportError as error:
        raise DataError(f"cannot read the image {name}: {error}; install the fsspec client on every node") from error
    except _UNREADABLE as error:
        raise RowError(UNREAD, f"{_shown(name)}: {type(error).__name__}: {error}") from error


def _place(name: str, shard_url: str) -> tuple[fsspec.AbstractFileSystem, str]:
    """Return the file system and the path of a picture; a relative path is looked for beside the shard."""
    if "://" in name or "::" in name:
        filesystem, path = fsspec.core.url_to_fs(name)
    elif os.path.isabs(name):
        filesystem, path = fsspec.core.url_to_fs(storage.absolute(name))
    else:
        filesystem, shard = fsspec.core.url_to_fs(storage.absolute(shard_url))
        path = posixpath.normpath(posixpath.join(posixpath.dirname(shard), name))
    return filesystem, path
