"""The arguments of a model's forward for a micro-batch whose prompts have images."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raydpo.batching.micro_batch import MicroBatch
from raydpo.errors import ModelError
from raydpo.models.attention.padded import row_spans
from raydpo.models.attention.segments import Segments
from raydpo.models.images.features import features_at, image_encoder
from raydpo.models.images.positions import (
    has_own_positions,
    image_runs,
    packed_positions,
    padded_positions,
    prompt_positions,
)
from raydpo.models.images.reader import Arrays, collate_images
from raydpo.models.inputs import BodyInputs

Marks = npt.NDArray[np.bool_]
"""[T]: whether each token of the packed row is an image token."""


@dataclass(frozen=True)
class _Groups:
    """The different tuples of images of a micro-batch, each of which is encoded once."""

    images: tuple[tuple[str, ...], ...]
    """Digests of each group, in the order of the forward's images."""
    tokens: tuple[int, ...]
    """Number of image tokens of each group."""
    of_prompt: dict[int, int]
    """Index of the group of each prompt with images, by the prompt's index in the layout."""

    def index(self, prompts: list[int]) -> Tensor:
        """Return the row among the features of all groups for each image token of these prompts, in order."""
        starts = np.cumsum([0, *self.tokens])
        groups = [self.of_prompt[prompt] for prompt in prompts if prompt in self.of_prompt]
        parts = [np.arange(starts[group], starts[group] + self.tokens[group]) for group in groups]
        return torch.from_numpy(np.concatenate([np.zeros(0, dtype=np.int64), *parts]))


class ImageInputs:
    """Makes the arguments for images, for one model: pixels of each image once, positions and kinds of tokens."""

    def __init__(self, causal_lm: Any, reader: Callable[[str], Arrays]) -> None:
        """Take a transformers model without an adapter around it, and what reads an image by its digest.

        Raises ModelError if the model takes no images among its tokens.
        """
        self._causal_lm = causal_lm
        self._reader = reader
        self._encoder = image_encoder(causal_lm)
        self._image_token = image_token(causal_lm.config)
        self._known = inspect.signature(type(self._encoder).forward).parameters

    def add(self, inputs: BodyInputs, batch: MicroBatch, device: torch.device, *, packed: bool) -> BodyInputs:
        """Return the inputs of the packed row, or of padded rows, with the images of the micro-batch.

        A micro-batch without images gets its spare one, which is encoded and goes nowhere. Raises ModelError if a text
        has image tokens without images.
        """
        is_image = batch.input_ids == self._image_token
        groups = self._groups(batch, is_image)
        if packed:
            arguments = self._packed(batch, is_image, groups, device)
            prompts = list(range(len(batch.images)))
        else:
            arguments = self._padded(batch, inputs, is_image, groups)
            prompts = [span.prompt for span in row_spans(batch.layout)]
        digests = [digest for group in groups.images for digest in group] or [batch.spare_image or ""]
        pixels = self._pixels(digests, device)
        tokens = sum(groups.tokens) if groups.images else None
        encoding = features_at(self._encoder, groups.index(prompts), tokens)
        return replace(inputs, arguments={**inputs.arguments, **arguments, **pixels}, encoding=encoding)

    def _groups(self, batch: MicroBatch, is_image: Marks) -> _Groups:
        counts: dict[tuple[str, ...], int] = {}
        of_prompt: dict[int, int] = {}
        placed = 0
        for prompt, images in enumerate(batch.images):
            if images:
                start, stop = batch.layout.prompts[prompt]
                tokens = int(is_image[start:stop].sum())
                placed += tokens
                counts.setdefault(images, tokens)
                of_prompt[prompt] = list(counts).index(images)
        if placed != is_image.sum():
            raise ModelError(
                f"{is_image.sum() - placed} tokens of pairs {', '.join(batch.pair_ids)[:200]} are the image token "
                f"{self._image_token} and belong to no image; take the image token's text out of these texts"
            )
        return _Groups(tuple(counts), tuple(counts.values()), of_prompt)

    def _pixels(self, digests: list[str], device: torch.device) -> dict[str, Tensor]:
        """Return what the model's forward takes of the processor's output for these images."""
        dtype = self._causal_lm.dtype
        collated = collate_images([self._reader(digest) for digest in digests])
        return {
            name: values.to(device, dtype if values.is_floating_point() else None)
            for name, values in collated.items()
            if name in self._known
        }

    def _positions(self, batch: MicroBatch, is_image: Marks, groups: _Groups) -> dict[int, Tensor]:
        """Return the positions [dimensions, tokens] of each prompt with images, by the model's own rule if it has one.

        Empty without such a rule: image tokens then have positions like others.
        """
        if not has_own_positions(self._encoder):
            return {}
        found = {}
        for prompt, group in groups.of_prompt.items():
            span = slice(*batch.layout.prompts[prompt])
            images = collate_images([self._reader(digest) for digest in groups.images[group]])
            ids, marks = (torch.from_numpy(values[span].copy()) for values in (batch.input_ids, is_image))
            found[prompt] = prompt_positions(self._encoder, ids, marks, images)
        return found

    def _packed(
        self,
        batch: MicroBatch,
        is_image: Marks,
        groups: _Groups,
        device: torch.device,
    ) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        if positions := self._positions(batch, is_image, groups):
            arguments["position_ids"] = packed_positions(batch, positions).to(device)
        if "token_type_ids" in self._known and groups.images:  # Gemma 3: the tokens of an image see each other
            arguments["segments"] = Segments(batch.layout, device, tuple(image_runs(is_image.tolist())))
        return arguments

    def _padded(
        self,
        batch: MicroBatch,
        inputs: BodyInputs,
        is_image: Marks,
        groups: _Groups,
    ) -> dict[str, Any]:
        arguments: dict[str, Any] = {}
        rows: Tensor = inputs.arguments["input_ids"]
        kinds = (rows == self._image_token).to(rows.dtype)
        for name in ("token_type_ids", "mm_token_type_ids"):
            if name in self._known and groups.images:
                arguments[name] = kinds
        if positions := self._positions(batch, is_image, groups):
            arguments["position_ids"] = padded_positions(batch.layout, rows.shape[1], positions).to(rows.device)
        return arguments


def image_token(config: Any) -> int:
    """Return the id of the tokens at which a model puts the features of images.

    Raises ModelError if the config does not name it.
    """
    for name in ("image_token_id", "image_token_index"):
        found = getattr(config, name, None)
        if found is not None:
            return int(found)
    raise ModelError(
        f"the config of this {config.model_type} model names no image_token_id, at whose positions features of images "
        "go; choose another model, or leave the images out"
    )
