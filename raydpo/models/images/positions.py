"""Position ids of rows with images, for models whose image tokens have positions in several dimensions (M-RoPE).

Wang et al. 2024 (Qwen2-VL), section 2.1: an image token has a temporal position, a row and a column; a text token has
the same position in each dimension, and the text after an image goes on from the largest position in it.
"""

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from raydpo.batching.micro_batch import Layout, MicroBatch
from raydpo.models.attention.padded import row_spans


def has_own_positions(encoder: Any) -> bool:
    """Return whether a model computes the positions of prompts with images by a rule of its own."""
    return hasattr(encoder, "get_rope_index")


def prompt_positions(encoder: Any, prompt: Tensor, is_image: Tensor, images: Mapping[str, Tensor]) -> Tensor:
    """Return the position ids [dimensions, tokens] of a prompt alone, by the model's own rule, on the CPU.

    `prompt` [tokens] are its token ids, `is_image` [tokens] tells image tokens, and `images` is what the processor made
    of its images.
    """
    known = inspect.signature(encoder.get_rope_index).parameters
    options = {"mm_token_type_ids": is_image.int()[None], **images}
    options = {name: value for name, value in options.items() if name in known}
    positions: Tensor = encoder.get_rope_index(input_ids=prompt[None], **options)[0]
    return positions[:, 0]


def packed_positions(batch: MicroBatch, prompts: Mapping[int, Tensor]) -> Tensor:
    """Return the position ids [dimensions, 1, T] of a packed row, from those of its prompts with images by index."""
    positions = torch.from_numpy(batch.position_ids.copy()).repeat(_dimensions(prompts), 1)
    for index, own in prompts.items():
        start, stop = batch.layout.prompts[index]
        positions[:, start:stop] = own
    for start, stop, prompt in batch.layout.completions:
        if prompt in prompts:
            positions[:, start:stop] = _next(prompts[prompt], stop - start)
    return positions[:, None]


def padded_positions(layout: Layout, width: int, prompts: Mapping[int, Tensor]) -> Tensor:
    """Return the position ids [dimensions, R, W] of padded rows, from those of prompts with images by index."""
    spans = row_spans(layout)
    positions = torch.arange(width).repeat(_dimensions(prompts), len(spans), 1)
    for row, span in enumerate(spans):
        if span.prompt in prompts:
            own = prompts[span.prompt]
            begin, length = own.shape[1], span.stop - span.start
            positions[:, row, :begin] = own
            positions[:, row, begin : begin + length] = _next(own, length)
    return positions


def _dimensions(prompts: Mapping[int, Tensor]) -> int:
    return next(iter(prompts.values())).shape[0]


def _next(prompt: Tensor, tokens: int) -> Tensor:
    """Return the positions [tokens] of text that follows a prompt with these positions."""
    return torch.arange(tokens) + prompt.max() + 1


def image_runs(is_image: Sequence[bool]) -> list[tuple[int, int]]:
    """Return the (start, stop) of each run of image tokens."""
    marks = [False, *is_image, False]
    edges = [index for index in range(len(marks) - 1) if marks[index] != marks[index + 1]]
    return list(zip(edges[::2], edges[1::2], strict=True))
