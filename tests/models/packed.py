"""Pairs of random tokens, packed; and their log-probs by the model's own forward, each sequence by itself."""

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
"""Of a tiny decoder, in the words of most families' configs."""


def pairs() -> list[TokenizedPair]:
    """Four pairs of three prompts; two of them have the prompt and one completion in common."""
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
    """All of them in one row."""
    return collate(build_prompt_trees(members, 10**6), members, with_prompts=with_prompts, multiple=multiple)


def sharing(model: Any) -> Any:
    """The model with the attention function for shared prompts."""
    register_attention()
    model.set_attn_implementation(IMPLEMENTATIONS["sdpa"])
    return model


def sequences(members: list[TokenizedPair], batch: MicroBatch) -> list[tuple[Tensor, int]]:
    """Token ids and prompt length of the 2B sequences, in the order of the micro-batch."""
    by_id = {pair.pair_id: pair for pair in members}
    ordered = [by_id[name] for name in batch.pair_ids]
    found = [(pair.prompt_ids, pair.chosen_ids) for pair in ordered]
    found += [(pair.prompt_ids, pair.rejected_ids) for pair in ordered]
    return [(torch.from_numpy(np.concatenate(parts)), len(parts[0])) for parts in found]


def plain_logits(model: Any, members: list[TokenizedPair], batch: MicroBatch) -> tuple[Tensor, Tensor]:
    """Logits [M, V] that predict the tokens of the 2B completions, each sequence by itself; and these tokens [M]."""
    logits, targets = [], []
    for ids, prompt in sequences(members, batch):
        logits.append(model(input_ids=ids[None]).logits[0, prompt - 1 : -1].float())
        targets.append(ids[prompt:])
    return torch.cat(logits), torch.cat(targets)
