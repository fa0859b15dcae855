"""Packed rows of pairs with random tokens, and logits from the model's own forward with one sequence per row."""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from raydpo.batching.collate import collate
from raydpo.batching.micro_batch import MicroBatch
from raydpo.batching.prefix_tree import build_prompt_trees
from raydpo.blocks.schema import TokenizedPair
from raydpo.models.attention.choice import IMPLEMENTATIONS
from raydpo.models.attention.kernels import register_attention

VOCABULARY = 61
SHAPE: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
"""Shape of a tiny decoder, under the names that most config classes use."""


def pairs() -> list[TokenizedPair]:
    """Return four pairs with three prompts; two of the pairs have the prompt and one completion in common."""
    draw = np.random.default_rng(0)

    def ids(count: int) -> Any:
        return draw.integers(1, VOCABULARY, count)

    shared, better, worse, worst = ids(7), ids(5), ids(3), ids(6)
    return [
        TokenizedPair("a", shared, better, worse),
        TokenizedPair("b", ids(1), ids(4), ids(2)),
        TokenizedPair("c", shared, worse, worst),
        TokenizedPair("d", ids(9), ids(1), ids(8)),
    ]


def packed(members: list[TokenizedPair], *, with_prompts: bool = False, multiple: int = 1) -> MicroBatch:
    """Return all pairs in one packed row."""
    return collate(build_prompt_trees(members, 10**6), members, with_prompts=with_prompts, multiple=multiple)


def sharing(model: Any) -> Any:
    """Switch a model to the attention function for shared prompts and return it."""
    register_attention()
    model.set_attn_implementation(IMPLEMENTATIONS["sdpa"])
    return model


def sequences(members: list[TokenizedPair], batch: MicroBatch) -> list[tuple[Tensor, int]]:
    """Return token ids and prompt length of the 2B sequences, in the order of the micro-batch."""
    by_id = {pair.pair_id: pair for pair in members}
    ordered = [by_id[name] for name in batch.pair_ids]
    found = [(pair.prompt_ids, pair.chosen_ids) for pair in ordered]
    found += [(pair.prompt_ids, pair.rejected_ids) for pair in ordered]
    return [(torch.from_numpy(np.concatenate(parts)), len(parts[0])) for parts in found]


def plain_logits(model: Any, members: list[TokenizedPair], batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Return the logits [M, V] for the tokens [M] of the 2B completions, one forward per sequence, and these tokens."""
    logits, targets = [], []
    for ids, prompt in sequences(members, batch):
        logits.append(model(input_ids=ids[None]).logits[0, prompt - 1 : -1].float())
        targets.append(ids[prompt:])
    return torch.cat(logits), torch.cat(targets)
