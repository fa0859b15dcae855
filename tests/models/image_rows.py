"""Pairs whose prompts have images, for tiny vision-language models, and the model's own forward of each sequence."""

from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydpo.batching.micro_batch import MicroBatch
from raydpo.blocks.schema import TokenizedPair
from raydpo.models.images.reader import Arrays
from tests.models.packed import sequences
from tests.models.vision_models import IMAGE, PATCH, SIDE

GRID = {"qwen2_vl", "qwen2_5_vl", "qwen3_vl", "qwen3_5", "glm4v"}
"""Families whose images are rows of patches of any number, with the number of patches of each side."""
TILES = {"idefics3", "smolvlm"}
"""Families whose images are several tiles of one size."""
SIZES: dict[str, tuple[int, int]] = {"a": (16, 16), "b": (24, 16), "c": (16, 32)}
"""Height and width of each image in pixels; families with one size of images see all as squares."""


def image(family: str, name: str) -> tuple[dict[str, Any], int]:
    """Return what the image processor of a family would make of an image, and its number of tokens."""
    draw = np.random.default_rng(ord(name))
    height, width = SIZES[name]
    if family in GRID:
        rows, columns = height // PATCH, width // PATCH
        pixels = draw.standard_normal((rows * columns, 3 * 2 * PATCH * PATCH))
        grid = np.array([[1, rows, columns]])
        return {"pixel_values": pixels.astype(np.float32), "image_grid_thw": grid}, rows * columns // 4
    if family in TILES:
        tiles = 1 if name == "a" else 3
        pixels = draw.standard_normal((1, tiles, 3, SIDE, SIDE))
        mask = np.ones((1, tiles, SIDE, SIDE), dtype=np.int64)
        return {"pixel_values": pixels.astype(np.float32), "pixel_attention_mask": mask}, 4 * tiles
    if family == "mistral3":
        pixels = draw.standard_normal((1, 3, height, width))
        sizes = np.array([[height, width]])
        return {"pixel_values": pixels.astype(np.float32), "image_sizes": sizes}, height * width // (2 * PATCH) ** 2
    if family == "llava_next":
        # A small picture of the whole (16 tokens), and a grid of tiles whose rows of patches end with a token.
        size, tiles, tokens = {"a": ((16, 32), 3, 52), "b": ((32, 16), 3, 56), "c": ((32, 32), 5, 88)}[name]
        pixels = draw.standard_normal((1, tiles, 3, SIDE, SIDE))
        return {"pixel_values": pixels.astype(np.float32), "image_sizes": np.array([size])}, tokens
    pixels = draw.standard_normal((1, 3, SIDE, SIDE))
    return {"pixel_values": pixels.astype(np.float32)}, {"llava": 16}.get(family, 4)


def image_pairs(family: str) -> list[TokenizedPair]:
    """Return pairs of one image, of the same image and another text, of two images (twice one prompt), and of none."""
    draw = np.random.default_rng(7)

    def ids(count: int) -> Any:
        return draw.integers(3, IMAGE - 4, count)

    def prompt(*names: str) -> Any:
        parts = [ids(2)]
        for name in names:
            parts += [np.full(image(family, name)[1], IMAGE), ids(2)]
        return np.concatenate(parts)

    pairs = [
        TokenizedPair("one", prompt("b"), ids(5), ids(3), images=("b",)),
        TokenizedPair("again", prompt("b"), ids(2), ids(4), images=("b",)),
        TokenizedPair("two", prompt("a", "c"), ids(3), ids(4), images=("a", "c")),
        TokenizedPair("none", ids(6), ids(3), ids(2)),
    ]
    same = replace(pairs[2], pair_id="same prompt", chosen_ids=ids(4))
    return [*pairs, same]


class Images:
    """Reads the images of a family, in place of the store, and notes which are read."""

    def __init__(self, family: str) -> None:
        self.family = family

    def __call__(self, digest: str) -> Arrays:
        """Return the arrays of an image."""
        return image(self.family, digest)[0]


def own_logits(model: Any, family: str, members: list[TokenizedPair], batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Return logits [M, V] and token ids [M] of the 2B completions, each sequence alone in the model's own forward."""
    by_id = {pair.pair_id: pair for pair in members}
    logits, targets = [], []
    images = [by_id[name].images for name in batch.pair_ids] * 2
    for (ids, prompt), names in zip(sequences(members, batch), images, strict=True):
        arguments = own_arguments(model, ids, [image(family, name)[0] for name in names])
        logits.append(model(input_ids=ids[None], **arguments).logits[0, prompt - 1 : -1].float())
        targets.append(ids[prompt:])
    return torch.cat(logits), torch.cat(targets)


def own_arguments(model: Any, ids: Tensor, images: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the arguments that a processor makes for one sequence, besides its token ids."""
    if not images:
        return {}
    arguments: dict[str, Any] = {"attention_mask": torch.ones_like(ids[None])}
    for name in images[0]:
        arrays = [torch.from_numpy(entry[name]) for entry in images]
        if arrays[0].dim() == 5 and model.config.model_type == "llava_next":
            most = max(array.shape[1] for array in arrays)
            arguments[name] = torch.cat([torch.nn.functional.pad(x, (0,) * 7 + (most - x.shape[1],)) for x in arrays])
        elif arrays[0].dim() == 5 or name == "pixel_attention_mask":  # the tiles of all images of a sequence
            arguments[name] = torch.cat(arrays, dim=1)
        elif name == "pixel_values" and arrays[0].dim() == 4:
            sides = [max(array.shape[axis] for array in arrays) for axis in (2, 3)]
            padded = [
                torch.nn.functional.pad(array, (0, sides[1] - array.shape[3], 0, sides[0] - array.shape[2]))
                for array in arrays
            ]
            arguments[name] = torch.cat(padded)
        else:
            arguments[name] = torch.cat(arrays)
    kinds = (ids == IMAGE).long()[None]
    model_type = model.config.model_type
    if model_type == "gemma3":
        arguments["token_type_ids"] = kinds
    if model_type in GRID:
        arguments["mm_token_type_ids"] = kinds
    return arguments
