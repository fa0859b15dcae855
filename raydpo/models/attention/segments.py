"""The layout of a packed row in the forms that attention kernels need.

The row consists of parts. A trunk is a prompt with the completion that stands directly after it, a plain causal
sequence. A branch is any other completion, whose tokens attend to themselves and to the prompt of its trunk.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask

from raydpo.batching.micro_batch import Layout
from raydpo.blocks.schema import IntArray


@dataclass(frozen=True)
class Part:
    """A span of the row whose queries are computed by one attention call."""

    start: int
    """Index of its first token in the row."""
    stop: int
    """Index after its last token in the row."""
    trunk: int
    """Index of the part that begins with its prompt; for a trunk, its own index."""
    prompt: int
    """Number of prompt tokens at the start of the trunk that a branch also attends to; 0 for a trunk."""

    @property
    def length(self) -> int:
        """Number of tokens of the part."""
        return self.stop - self.start


@dataclass(frozen=True)
class VarlenIndex:
    """The arguments of `varlen_attn` for a row; the queries are the row itself, the keys are gathered from it."""

    cu_seq_q: Tensor
    """[S + 1] int32: start of the queries of each of S sequences, and the end of the row."""
    cu_seq_k: Tensor
    """[S + 1] int32: start of the keys of each of S sequences, and the end of the gathered keys."""
    max_q: int
    """Largest number of queries of a sequence."""
    max_k: int
    """Largest number of keys of a sequence."""
    gather: Tensor | None
    """[keys] int64: index into the row of each key; None if the keys are the row itself."""


class Segments:
    """The layout of one packed row for the attention backends, made once per forward and shared by all layers."""

    def __init__(self, layout: Layout, device: torch.device, blocks: tuple[tuple[int, int], ...] = ()) -> None:
        """Split the row into parts.

        `blocks` are the (start, stop) of spans within prompts whose tokens attend to each other in both directions.
        Raises ValueError if the layout leaves out a token of the row or contains one twice.
        """
        self._layout = layout
        self._device = device
        self.blocks = blocks
        """Spans within prompts, (start, stop), whose tokens attend to each other in both directions."""
        self.parts = _parts(layout)
        self.lengths = [part.length for part in self.parts]
        """Number of tokens of each part, in the order of the row."""
        self.tokens = sum(self.lengths)
        """Number of tokens of the row."""
        self.longest = max(part.prompt + part.length for part in self.parts)
        """Number of tokens of the longest sequence, including its prompt."""
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}
        self._block_parts: dict[tuple[int, int | None], Tensor] = {}
        self._block_masks: dict[int | None, BlockMask] = {}
        self._copies: dict[torch.device, Segments] = {}

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Segments":
        """Return the segments on another device; results are cached.

        Code that spreads a model over several devices calls this method as it calls that of a tensor.
        """
        target = torch.device(device)
        if target == self._device:
            return self
        if target not in self._copies:
            self._copies[target] = Segments(self._layout, target, self.blocks)
        return self._copies[target]

    def window(self, sliding_window: int | None) -> int | None:
        """Return a layer's window, or None if the window hides no token of the row.

        A token attends to itself and to the `sliding_window - 1` tokens before it.
        """
        return None if sliding_window is None or sliding_window >= self.longest else sliding_window

    def mask(self, queries: int, keys: int, window: int | None) -> Tensor | None:
        """Return a mask [queries, keys] bool, True where a query attends to a key.

        The last query attends to all keys that the window does not hide. Returns None for the causal square, which
        kernels support without a mask.
        """
        if queries == keys and (window is None or keys <= window):
            return None
        shape = (queries, keys, window)
        if shape not in self._masks:
            mask = torch.ones(queries, keys, dtype=torch.bool, device=self._device).tril(keys - queries)
            self._masks[shape] = mask if window is None else mask.triu(keys - queries - window + 1)
        return self._masks[shape]

    def part_mask(self, part: Part, keys: int, window: int | None) -> Tensor | None:
        """Return the mask of a part with its `keys` keys like `mask`, in which blocks see themselves whole.

        A window hides what is further to the left also within a block, as in Gemma 3.
        """
        blocks = [(start, stop) for start, stop in self.blocks if part.start <= start < part.stop]
        if not blocks:
            return self.mask(part.length, keys, window)
        place = (part.start, window)
        if place not in self._block_parts:
            mask = torch.ones(part.length, part.length, dtype=torch.bool, device=self._device).tril()
            for start, stop in blocks:
                mask[start - part.start : stop - part.start, start - part.start : stop - part.start] = True
            self._block_parts[place] = mask if window is None else mask.triu(1 - window)
        return self._block_parts[place]

    @cached_property
    def varlen(self) -> VarlenIndex:
        """The arguments of `varlen_attn` for the row."""
        trunks = [self.parts[part.trunk].start for part in self.parts]
        keys = [
            np.concatenate([np.arange(trunk, trunk + part.prompt), np.arange(part.start, part.stop)])
            for trunk, part in zip(trunks, self.parts, strict=True)
        ]
        counts = [len(indices) for indices in keys]
        shared = any(part.prompt for part in self.parts)
        return VarlenIndex(
            cu_seq_q=self._cumulative(self.lengths),
            cu_seq_k=self._cumulative(counts),
            max_q=max(self.lengths),
            max_k=max(counts),
            gather=torch.from_numpy(np.concatenate(keys)).to(self._device) if shared else None,
        )

    def block_mask(self, window: int | None) -> BlockMask:
        """Return the block mask of `flex_attention` for the row, under a window that `window` returned."""
        if window not in self._block_masks:
            self._block_masks[window] = self._block_mask(window)
        return self._block_masks[window]

    def _block_mask(self, window: int | None) -> BlockMask:
        coordinates = _coordinates(self._layout, self.tokens)
        prompt, completion, position = (torch.from_numpy(ids).to(self._device) for ids in coordinates)

        def sees(_batch: Tensor, _head: Tensor, query: Tensor, key: Tensor) -> Tensor:
            same = (completion[key] == completion[query]) | (completion[key] < 0)
            visible = (prompt[key] == prompt[query]) & same & (key <= query)
            return visible if window is None else visible & (position[key] > position[query] - window)

        # Without compilation, the full mask is built before its blocks.
        compiled = self._device.type == "cuda"
        return create_block_mask(sees, None, None, self.tokens, self.tokens, device=self._device, _compile=compiled)

    def _cumulative(self, lengths: list[int]) -> Tensor:
        """Return the start of each span and the end of the last one, as int32 on the device."""
        return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)).to(self._device)


def _parts(layout: Layout) -> tuple[Part, ...]:
    """Return the trunks and branches of a layout, in the order of the row."""
    first: dict[int, tuple[int, int, int]] = {}
    for completion in layout.completions:
        first.setdefault(completion[2], completion)
    spans = [
        (start, first[index][1] if index in first else stop, index, 0)
        for index, (start, stop) in enumerate(layout.prompts)
    ]
    for start, stop, prompt in layout.completions:
        if (start, stop, prompt) != first[prompt]:
            begin, end = layout.prompts[prompt]
            spans.append((start, stop, prompt, end - begin))
    spans.sort()
    adjoining = [0, *(stop for _, stop, _, _ in spans[:-1])] == [start for start, _, _, _ in spans]
    if not adjoining or any(start != layout.prompts[prompt][1] for start, _, prompt in first.values()):
        raise ValueError(f"prompts and their completions must be contiguous and in order in the row: {layout}")
    trunk = {prompt: index for index, (_, _, prompt, shared) in enumerate(spans) if shared == 0}
    return tuple(Part(start, stop, trunk[prompt], shared) for start, stop, prompt, shared in spans)


def _coordinates(layout: Layout, tokens: int) -> tuple[IntArray, IntArray, IntArray]:
    """Return, per token of the row: prompt, completion (-1 in a prompt), position in prompt + completion."""
    prompts, completions, positions = (np.zeros(tokens, dtype=np.int64) for _ in range(3))
    for index, (start, stop) in enumerate(layout.prompts):
        prompts[start:stop], completions[start:stop], positions[start:stop] = index, -1, np.arange(stop - start)
    for index, (start, stop, prompt) in enumerate(layout.completions):
        begin, end = layout.prompts[prompt]
        prompts[start:stop], completions[start:stop] = prompt, index
        positions[start:stop] = np.arange(stop - start) + end - begin
    return prompts, completions, positions
