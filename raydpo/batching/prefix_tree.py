"""Prompt trees: completions of the same prompt share it as the root, and each distinct completion is a branch.

A forward of a tree computes the prompt and each distinct completion once.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from raydpo.batching.loss_mask import count_masked
from raydpo.blocks.schema import IntArray, TokenizedPair


@dataclass(frozen=True)
class PromptTree:
    """Completions of a prompt that go into the same forward, and the pairs that they belong to."""

    prompt: IntArray
    """Token ids of the prompt, [tokens]."""
    completions: tuple[IntArray, ...]
    """Token ids of each distinct completion, each [tokens]."""
    pairs: tuple[int, ...]
    """Indices of the pairs in the batch that the tree was built from; empty if the completions have no pairs."""
    chosen: tuple[int, ...]
    """Index in `completions` of each pair's chosen completion."""
    rejected: tuple[int, ...]
    """Index in `completions` of each pair's rejected completion."""
    masked: int = 0
    """Number of completion tokens that are a target of no pair, as loss masks hide them."""
    images: tuple[str, ...] = ()
    """Digest of each image of the prompt, in the order of its tokens."""

    @cached_property
    def lengths(self) -> tuple[int, ...]:
        """Number of tokens of each completion."""
        return tuple(len(completion) for completion in self.completions)

    @cached_property
    def tokens(self) -> int:
        """Number of tokens in a packed row: the prompt and each completion once."""
        return len(self.prompt) + sum(self.lengths)

    @property
    def targets(self) -> int:
        """Number of completion tokens whose log-probs are computed."""
        return sum(self.lengths) - self.masked

    @property
    def longest(self) -> int:
        """Number of tokens of the prompt with its longest completion."""
        return len(self.prompt) + max(self.lengths)


def build_prompt_trees(
    pairs: Sequence[TokenizedPair], max_tokens: int, max_pairs: int | None = None
) -> list[PromptTree]:
    """Return trees that contain each of the pairs once, in the order of the first pair of each prompt.

    Pairs with the same prompt and images share a tree of at most `max_tokens` tokens (a single pair may be longer) and
    at most `max_pairs` pairs.
    """
    by_prompt: dict[tuple[bytes, tuple[str, ...]], list[int]] = {}
    for index, pair in enumerate(pairs):
        by_prompt.setdefault((pair.prompt_ids.tobytes(), pair.images), []).append(index)
    most = max_pairs or max(len(pairs), 1)
    parts = (members[first : first + most] for members in by_prompt.values() for first in range(0, len(members), most))
    return [tree for part in parts for tree in _trees(pairs, part, max_tokens)]


def build_completion_trees(
    prompt: IntArray,
    completions: Sequence[IntArray],
    max_tokens: int,
    *,
    one_pair: bool,
    images: tuple[str, ...] = (),
) -> list[PromptTree]:
    """Return trees, without pairs, that contain each of a prompt's distinct completions once, in the given order.

    A tree takes two completions at a time, as many as `max_tokens` tokens have room for but at least two; with
    `one_pair`, it takes two at most.
    """
    trees: list[PromptTree] = []
    held: list[IntArray] = []
    for first in range(0, len(completions), 2):
        added = list(completions[first : first + 2])
        if held and (one_pair or len(prompt) + sum(map(len, held + added)) > max_tokens):
            trees.append(PromptTree(prompt, tuple(held), (), (), (), images=images))
            held = []
        held += added
    return [*trees, PromptTree(prompt, tuple(held), (), (), (), images=images)] if held else trees


def _trees(pairs: Sequence[TokenizedPair], members: Iterable[int], max_tokens: int) -> Iterable[PromptTree]:
    """Yield the trees of the pairs `members`, which have the same prompt."""
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
    """Return the tree of the pairs `taken`, each given as (pair, chosen completion, rejected completion)."""
    members, chosen, rejected = zip(*taken, strict=True)
    different = tuple(ids for _, ids in completions.values())
    uses = [(better, pairs[index].chosen_ids, pairs[index].chosen_loss_mask) for index, better, _ in taken]
    uses += [(worse, pairs[index].rejected_ids, pairs[index].rejected_loss_mask) for index, _, worse in taken]
    first = pairs[members[0]]
    sides = (tuple(chosen), tuple(rejected))
    return PromptTree(first.prompt_ids, different, tuple(members), *sides, count_masked(uses), first.images)
