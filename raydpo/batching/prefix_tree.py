"""Pairs of one prompt as a tree: the prompt is the root, each different completion a branch, each computed once."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from raydpo.blocks.schema import IntArray, TokenizedPair


@dataclass(frozen=True)
class PromptTree:
    """Some pairs of one prompt, which go into the same forward."""

    prompt: IntArray
    """[tokens]"""
    completions: tuple[IntArray, ...]
    """The different ones, each [tokens]."""
    pairs: tuple[int, ...]
    """Indices of the pairs in the batch that the tree was grown from."""
    chosen: tuple[int, ...]
    """Of each pair, which completion is its chosen one."""
    rejected: tuple[int, ...]

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Tokens of each completion."""
        return tuple(len(completion) for completion in self.completions)

    @cached_property
    def tokens(self) -> int:
        """Tokens in a packed row: the prompt and each completion once."""
        return len(self.prompt) + sum(self.lengths)

    @property
    def longest(self) -> int:
        """Tokens of the prompt with its longest completion."""
        return len(self.prompt) + max(self.lengths)


def build_prompt_trees(
    pairs: Sequence[TokenizedPair], max_tokens: int, max_pairs: int | None = None
) -> list[PromptTree]:
    """Trees that hold each of the pairs once, in the order of their first pairs.

    Pairs of one prompt share a tree as long as that has at most `max_tokens`, though a single pair may be longer, and
    at most `max_pairs`.
    """
    by_prompt: dict[bytes, list[int]] = {}
    for index, pair in enumerate(pairs):
        by_prompt.setdefault(pair.prompt_ids.tobytes(), []).append(index)
    most = max_pairs or max(len(pairs), 1)
    parts = (members[first : first + most] for members in by_prompt.values() for first in range(0, len(members), most))
    return [tree for part in parts for tree in _trees(pairs, part, max_tokens)]


def _trees(pairs: Sequence[TokenizedPair], members: Iterable[int], max_tokens: int) -> Iterable[PromptTree]:
    """The pairs `members` have the same prompt."""
    completions: dict[bytes, tuple[int, IntArray]] = {}
    taken: list[tuple[int, int, int]] = []
    tokens = 0
    for index in members:
        pair = pairs[index]
        sides = {ids.tobytes(): ids for ids in (pair.chosen_ids, pair.rejected_ids)}
        added = sum(len(ids) for content, ids in sides.items() if content not in completions)
        if taken and tokens + added > max_tokens:
            yield _tree(pairs, taken, completions)
            completions, taken, tokens = {}, [], 0
            added = sum(map(len, sides.values()))
        tokens += added + (0 if taken else len(pair.prompt_ids))
        for content, ids in sides.items():
            completions.setdefault(content, (len(completions), ids))
        chosen, rejected = (completions[ids.tobytes()][0] for ids in (pair.chosen_ids, pair.rejected_ids))
        taken.append((index, chosen, rejected))
    yield _tree(pairs, taken, completions)


def _tree(
    pairs: Sequence[TokenizedPair],
    taken: Sequence[tuple[int, int, int]],
    completions: dict[bytes, tuple[int, IntArray]],
) -> PromptTree:
    members, chosen, rejected = zip(*taken, strict=True)
    different = tuple(ids for _, ids in completions.values())
    return PromptTree(pairs[members[0]].prompt_ids, different, tuple(members), tuple(chosen), tuple(rejected))
