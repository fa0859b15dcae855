"""Collation of prompt trees into the packed row of one forward."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import chain

import numpy as np

from raydpo.batching.loss_mask import joint_mask, without_masked
from raydpo.batching.micro_batch import Layout, MicroBatch
from raydpo.batching.prefix_tree import PromptTree
from raydpo.blocks.schema import FloatArray, IntArray, ScoredPair, TokenizedPair


def collate(
    trees: Sequence[PromptTree], pairs: Sequence[TokenizedPair], *, with_prompts: bool = False, multiple: int = 1
) -> MicroBatch:
    """Return the pairs of the trees in one packed row (see `MicroBatch`), or a dummy batch if there are no trees.

    `pairs` is the batch that the trees were built from. With `with_prompts`, the tokens of prompts are targets as well;
    tokens that the pairs' loss masks hide are none.
    The row is filled up to a multiple of `multiple` tokens with a segment that no other segment attends to.
    """
    lengths = np.array([n for tree in trees for n in (len(tree.prompt), *tree.lengths)], dtype=np.int64)
    starts = np.cumsum(lengths) - lengths
    layout = _layout(trees, starts, lengths)
    completions = np.array(layout.completions, dtype=np.int64).reshape(-1, 3)
    prompt_spans = np.array(layout.prompts, dtype=np.int64).reshape(-1, 2)

    first, length = completions[:, 0], completions[:, 1] - completions[:, 0]
    predictors = _ranges(first - 1, length)
    position = np.cumsum(length) - length  # index of each completion's first token among the N targets
    predictors[position] = prompt_spans[completions[:, 2], 1] - 1
    targets = _ranges(first, length)

    side = _sides(trees)
    pair_prompt = np.repeat(np.arange(len(trees)), [len(tree.pairs) for tree in trees])
    prompt_target_index = prompt_pair_index = np.zeros(0, dtype=np.int64)
    if with_prompts:
        prompt_first, prompt_length = prompt_spans[:, 0], prompt_spans[:, 1] - prompt_spans[:, 0] - 1
        prompt_position = len(targets) + np.cumsum(prompt_length) - prompt_length
        predictors = np.concatenate([predictors, _ranges(prompt_first, prompt_length)])
        targets = np.concatenate([targets, _ranges(prompt_first + 1, prompt_length)])
        prompt_target_index = _ranges(prompt_position[pair_prompt], prompt_length[pair_prompt])
        prompt_pair_index = np.repeat(np.arange(len(pair_prompt)), prompt_length[pair_prompt])

    total = max(int(lengths.sum()), 1)
    width = -(-total // multiple) * multiple
    if width > lengths.sum():
        layout = replace(layout, prompts=(*layout.prompts, (int(lengths.sum()), width)))
    parts = list(chain.from_iterable((tree.prompt, *tree.completions) for tree in trees))
    input_ids = _filled(np.concatenate(parts) if parts else lengths, width)
    batch = MicroBatch(
        input_ids=input_ids,
        position_ids=_filled(_ranges(_offsets(trees), lengths), width),
        multiplicity=_filled(_multiplicity(trees, side, lengths), width) if trees else np.ones(width, dtype=np.int64),
        layout=layout,
        predictors=predictors,
        target_positions=targets,
        targets=input_ids[targets],
        target_index=_ranges(position[side], length[side]),
        sequence_index=np.repeat(np.arange(len(side)), length[side]),
        prompt_target_index=prompt_target_index,
        prompt_pair_index=prompt_pair_index,
        ref_logps=np.zeros(0, dtype=np.float32),
        pair_ids=tuple(pairs[index].pair_id for tree in trees for index in tree.pairs),
        images=tuple(tree.images for tree in trees),
    )
    mask = joint_mask([pairs[index] for tree in trees for index in tree.pairs])
    return batch if mask is None else without_masked(batch, mask)


def collate_scored(
    trees: Sequence[PromptTree], pairs: Sequence[ScoredPair], *, with_prompts: bool = False, multiple: int = 1
) -> MicroBatch:
    """Return the pairs of the trees in one packed row, with reference log-probs, weights, margins (see `collate`)."""
    batch = collate(trees, pairs, with_prompts=with_prompts, multiple=multiple)
    members = [pairs[index] for tree in trees for index in tree.pairs]
    if not members:
        return batch
    scores = np.concatenate([pair.ref_chosen_logps for pair in members] + [pair.ref_rejected_logps for pair in members])
    mask = joint_mask(members)
    return replace(
        batch,
        ref_logps=scores if mask is None else scores[mask],
        sample_weights=np.array([pair.weight for pair in members], dtype=np.float32),
        margins=np.array([pair.margin for pair in members], dtype=np.float32),
    )


def split_by_completion(values: FloatArray, trees: Sequence[PromptTree]) -> list[list[FloatArray]]:
    """Split the values of a forward for the N completion tokens: for each tree, an array [tokens] per completion.

    `trees` are those that the row was collated from, without prompts as targets.
    """
    lengths = [length for tree in trees for length in tree.lengths]
    parts = iter(np.split(values, np.cumsum(lengths)[:-1]))
    return [[next(parts) for _ in tree.completions] for tree in trees]


def _layout(trees: Sequence[PromptTree], starts: IntArray, lengths: IntArray) -> Layout:
    """Return the layout of segments with these starts and lengths: per tree, the prompt and then its completions."""
    spans = iter([(start, start + length) for start, length in zip(starts.tolist(), lengths.tolist(), strict=True)])
    prompts: list[tuple[int, int]] = []
    completions: list[tuple[int, int, int]] = []
    for index, tree in enumerate(trees):
        prompts.append(next(spans))
        completions += [(*next(spans), index) for _ in tree.completions]
    return Layout(tuple(prompts), tuple(completions))


def _sides(trees: Sequence[PromptTree]) -> IntArray:
    """Return the index, [2B], among all trees' completions of each pair's chosen one, then of its rejected one."""
    before = np.cumsum([0, *(len(tree.completions) for tree in trees)])
    chosen = [before[index] + choice for index, tree in enumerate(trees) for choice in tree.chosen]
    rejected = [before[index] + choice for index, tree in enumerate(trees) for choice in tree.rejected]
    return np.array(chosen + rejected, dtype=np.int64)


def _offsets(trees: Sequence[PromptTree]) -> IntArray:
    """Return the position id of the first token of each prompt and completion, tree by tree."""
    offsets = [offset for tree in trees for offset in (0, *[len(tree.prompt)] * len(tree.completions))]
    return np.array(offsets, dtype=np.int64)


def _multiplicity(trees: Sequence[PromptTree], side: IntArray, lengths: IntArray) -> IntArray:
    """Return the number of the 2B sequences that contain each token; `lengths` are those of prompts and completions."""
    completions = sum(len(tree.completions) for tree in trees)
    counts = iter(np.bincount(side, minlength=completions).tolist())
    uses = [use for tree in trees for use in (2 * len(tree.pairs), *(next(counts) for _ in tree.completions))]
    return np.repeat(np.array(uses, dtype=np.int64), lengths)


def _ranges(starts: IntArray, lengths: IntArray) -> IntArray:
    """Return the ranges start, start + 1, ... of the given lengths, concatenated."""
    before = np.cumsum(lengths) - lengths
    return np.repeat(starts - before, lengths) + np.arange(lengths.sum(), dtype=np.int64)


def _filled(values: IntArray, width: int) -> IntArray:
    """Return the values, padded with zeros to `width`."""
    return np.concatenate([values, np.zeros(width - len(values), dtype=np.int64)])
