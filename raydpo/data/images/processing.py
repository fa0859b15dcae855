"""What the model's processor makes of one image: its tensors, kept in the store, and the text that stands for it.

Processors of transformers replace the image token of a text by a text that depends on the image alone, such as one
token per patch, and encode the result. Thus each different image is processed once, alone, and the texts of a row are
expanded and encoded without pixels. A processor that places images in another way is noticed by comparison and refused.
"""

import copy
import hashlib
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from raydpo.data.images import store
from raydpo.data.index.record_json import Identified
from raydpo.errors import DataError

TEXT_OUTPUTS = frozenset(
    "input_ids attention_mask token_type_ids mm_token_type_ids text_replacement_offsets special_tokens_mask "
    "offset_mapping labels length".split()
)
"""Names in a processor's output that belong to its text; the others belong to its images."""
_OF_BOTH = "cross_attention_mask"
_OFFSETS = "text_replacement_offsets"
_REMEMBERED = 4096
"""Number of images whose texts a process keeps in memory."""
_proven: set[tuple[str, str]] = set()
"""Processors, with their tokens, that this process has compared with expanded texts."""


@dataclass(frozen=True)
class ImageIdentity:
    """What decides about the images of a run besides the images; part of the key of tokenized shards."""

    processor: str
    """SHA-256 (hex) of the processor: class, settings and those of its image processor; empty if there is none."""
    token: str
    """The token that stands for an image in the text that the processor is given."""
    chat_template: str | None
    """The processor's own chat template, where the tokenizer has another; None: that of the tokenizer."""


@dataclass(frozen=True)
class ProcessedImage:
    """An image whose tensors are in the store."""

    digest: str
    text: str
    """The text that takes the place of the image's token."""
    is_new: bool
    """Whether its tensors were computed for this call."""


class ImageProcessing(Identified):
    """The processor of a model, as tokenization uses it. Its tokenizer stays behind when it is sent to a process."""

    def __init__(self, identity: ImageIdentity, processor: Any, fault: str = "") -> None:
        """Keep a processor of transformers, or the reason (`fault`) why the model has none that can be used."""
        self.identity = identity
        self.fault = fault
        self._processor = processor
        self._texts: dict[str, str] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return what another process needs; a large vocabulary is sent once, with the run's tokenizer."""
        processor = copy.copy(self._processor)
        if processor is not None:
            processor.tokenizer = None
        return {"identity": self.identity, "fault": self.fault, "_processor": processor}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Start with an empty memory in another process."""
        self.__init__(state["identity"], state["_processor"], state["fault"])  # type: ignore[misc]

    def process(self, picture: Any, tokenizer: Any, cache_dir: str) -> ProcessedImage:
        """Return the digest and the text of a picture (a PIL image in RGB), whose tensors are then in the store.

        With an empty `cache_dir` there is no store, and nothing is written. Raises DataError if the model has no
        processor that can be used.
        """
        if self.fault:
            raise DataError(self.fault)
        self._processor.tokenizer = tokenizer
        key = (self.identity.processor, self.identity.token)
        if key not in _proven:
            self._prove()
            _proven.add(key)
        digest = self.digest(picture)
        text = self._texts.get(digest)
        if text is None and cache_dir:
            text = store.read_text(cache_dir, digest)
        is_new = text is None
        if text is None:
            tensors, text = self._output(picture)
            if cache_dir:
                store.write(cache_dir, digest, tensors, text)
        if len(self._texts) >= _REMEMBERED:
            self._texts.clear()
        self._texts[digest] = text = sys.intern(text)  # pictures of one size have one text
        return ProcessedImage(digest, text, is_new)

    def digest(self, picture: Any) -> str:
        """Return the SHA-256 (hex) of the processor's identity with the size and the RGB values of a picture."""
        digest = hashlib.sha256(f"{self.identity.processor} {picture.width}x{picture.height}\n".encode())
        digest.update(picture.tobytes())
        return digest.hexdigest()

    def _output(self, picture: Any) -> tuple[store.Tensors, str]:
        """Return what the processor makes of one picture: its tensors, and the text in the place of its token."""
        token = self.identity.token
        found = self._call([token], [picture], **{f"return_{_OFFSETS}": True})
        offsets = found.get(_OFFSETS)
        # Processors whose models read images by cross-attention leave the token as it is, and tell no offsets.
        text = str(offsets[0][0]["replacement"]) if offsets and offsets[0] else token
        return {name: _array(values) for name, values in found.items() if name not in TEXT_OUTPUTS}, text

    def _call(self, texts: list[str], pictures: list[Any], **options: Any) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._processor(
            text=texts, images=pictures, return_tensors="pt", add_special_tokens=False, **options
        )
        return found

    def _prove(self) -> None:
        """Raise DataError unless expanded text has the token ids that the processor gives a text with two images."""
        from PIL import Image

        tokenizer = self._processor.tokenizer
        name, token = type(self._processor).__name__, self.identity.token
        pictures = [Image.new("RGB", size, color) for size, color in (((40, 56), "navy"), ((64, 24), "gold"))]
        theirs = self._call([f"a {token} b\n{token}c"], pictures)
        if _OF_BOTH in theirs:
            raise DataError(
                f"{name} gives the model images by a {_OF_BOTH}, which raydpo does not make; use a model whose prompts "
                "have tokens for images, or drop the images of the data"
            )
        first, second = (self._output(picture)[1] for picture in pictures)
        ours = tokenizer(f"a {first} b\n{second}c", add_special_tokens=False)["input_ids"]
        if not np.array_equal(np.asarray(theirs["input_ids"])[0], ours):
            raise DataError(
                f"{name} does not place images by replacing {token!r} in the text, so raydpo cannot follow it; use a "
                "model whose processor does, or drop the images of the data"
            )


def _array(values: Any) -> Any:
    """Return a tensor of the processor's output as an array."""
    if hasattr(values, "detach"):
        values = values.detach().cpu()
        return (values.float() if not hasattr(np, str(values.dtype).removeprefix("torch.")) else values).numpy()
    return np.asarray(values)
