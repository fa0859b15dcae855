"""A packed row's layout in the forms that attention kernels ask for.

The row falls into parts: a trunk is a prompt with the completion that stands right after it, a plain causal sequence;
a branch is any other completion, whose tokens see the prompt of its trunk beside themselves.
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
    """Tokens of the row whose queries one attention call answers."""

    start: int
    """Index of its first token in the row."""
    stop: int
    """Index after its last."""
    trunk: int
    """Index of the part that begins with its prompt: a trunk's own."""
    prompt: int
    """Tokens of that part it sees beside its own; 0 for a trunk."""

    @property
    def length(self) -> int:
        """Its tokens."""
        return self.stop - self.start


@dataclass(frozen=True)
class VarlenIndex:
    """A row as `varlen_attn` takes it: the sequences' queries are the row as it is, their keys are gathered from it."""

    cu_seq_q: Tensor
    """[S + 1] int32; where the queries of each of S sequences begin, and the row's end."""
    cu_seq_k: Tensor
    """[S + 1] int32; the same for their keys."""
    max_q: int
    """Most queries of a sequence."""
    max_k: int
    gather: Tensor | None
    """[keys] int64, index into the row of each key; None where the keys are the row as it is."""


class Segments:
    """What the attention backends need to know of one packed row; made once a forward, shared by all layers."""

    def __init__(self, layout: Layout, device: torch.device) -> None:
        """ValueError where the layout leaves a token of the row out, or has one twice."""
        self._layout = layout
        self._device = device
        self.parts = _parts(layout)
        self.lengths = [part.length for part in self.parts]
        """Tokens of each part, in the order of the row."""
        self.tokens = sum(self.lengths)
        """Tokens of the row."""
        self.longest = max(part.prompt + part.length for part in self.parts)
        """Tokens of the longest sequence, prompt included."""
        self._masks: dict[tuple[int, int, int | None], Tensor] = {}
        self._block_masks: dict[int | None, BlockMask] = {}
        self._elsewhere: dict[torch.device, Segments] = {}

    def to(self, device: torch.device | str | int, non_blocking: bool = False) -> "Segments":
        """The same for layers on another device: what spreads a model over several calls it as it does a tensor's."""
        there = torch.device(device)
        if there == self._device:
            return self
        if there not in self._elsewhere:
            self._elsewhere[there] = Segments(self._layout, there)
        return self._elsewhere[there]

    def window(self, sliding_window: int | None) -> int | None:
        """A layer's window where it hides a token, else None; a token sees itself and `sliding_window - 1` before."""
        return None if sliding_window is None or sliding_window >= self.longest else sliding_window

    def mask(self, queries: int, keys: int, window: int | None) -> Tensor | None:
        """[queries, keys] bool, True where a query sees a key: the last query all of them, up to the window.

        None where that is the causal square that kernels know of by themselves.
        """
        if queries == keys and (window is None or keys <= window):
            return None
        shape = (queries, keys, window)
        if shape not in self._masks:
            mask = torch.ones(queries, keys, dtype=torch.bool, device=self._device).tril(keys - queries)
            self._masks[shape] = mask if window is None else mask.triu(keys - queries - window + 1)
        return self._masks[shape]

    @cached_property
    def varlen(self) -> VarlenIndex:
        """The row for `varlen_attn`."""
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
        """The row for `flex_attention`, under a window that `window` has given."""
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

        # Not compiled, the mask exists in full before its blocks do.
        compiled = self._device.type == "cuda"
        return create_block_mask(sees, None, None, self.tokens, self.tokens, device=self._device, _compile=compiled)

    def _cumulative(self, lengths: list[int]) -> Tensor:
        return torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)).to(self._device)


def _parts(layout: Layout) -> tuple[Part, ...]:
    """Trunks and branches in the order of the row."""
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
        raise ValueError(f"prompts and their completions do not stand one after the other in the row: {layout}")
    trunk = {prompt: index for index, (_, _, prompt, shared) in enumerate(spans) if shared == 0}
    return tuple(Part(start, stop, trunk[prompt], shared) for start, stop, prompt, shared in spans)


def _coordinates(layout: Layout, tokens: int) -> tuple[IntArray, IntArray, IntArray]:
    """Of each token of the row: its prompt, its completion (-1 in a prompt), its position in prompt + completion."""
    prompts, completions, positions = (np.zeros(tokens, dtype=np.int64) for _ in range(3))
    for index, (start, stop) in enumerate(layout.prompts):
        prompts[start:stop], completions[start:stop], positions[start:stop] = index, -1, np.arange(stop - start)
    for index, (start, stop, prompt) in enumerate(layout.completions):
        begin, end = layout.prompts[prompt]
        prompts[start:stop], completions[start:stop] = prompt, index
        positions[start:stop] = np.arange(stop - start) + end - begin
    return prompts, completions, positions
