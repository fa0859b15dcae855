"""Computes one update's gradient of a tiny model for any ranks and micro-batches, without Ray and DeepSpeed."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from raydpo.batching.collate import collate_scored
from raydpo.batching.micro_batch import MicroBatch
from raydpo.batching.prefix_tree import build_prompt_trees
from raydpo.blocks.schema import ScoredPair
from raydpo.config import LossConfig
from raydpo.feed.batches import RankBatch
from raydpo.models.attention.choice import IMPLEMENTATIONS
from raydpo.models.attention.kernels import register_attention
from raydpo.models.completion_logps import CompletionLogps
from raydpo.objectives.objective import counts_prompts
from raydpo.training.global_batch_loss import RewardMean
from raydpo.training.metric_sums import MetricSums
from raydpo.training.step import Objective, train_micro_batches

PAIRS = 16
SEED = 11
Split = Sequence[Sequence[Sequence[int]]]
"""[rank][micro-batch]: the indices of its pairs."""


def model(dropout: float = 0.0, shares: bool = False, vocabulary: int = 53) -> LlamaForCausalLM:
    """Return a model with fixed random weights; `shares` selects the attention that packed rows need."""
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        initializer_range=0.2,
        attention_dropout=dropout,
    )
    causal_lm = LlamaForCausalLM(config).train()
    if shares:
        register_attention()
        causal_lm.set_attn_implementation(IMPLEMENTATIONS["sdpa"])
    return causal_lm


def scored_pairs() -> list[ScoredPair]:
    """Return pairs of many lengths, with reference log-probs that are far from the policy's for every pair."""
    draw = np.random.default_rng(5)

    def ids(low: int, high: int) -> Any:
        return draw.integers(1, 53, draw.integers(low, high))

    pairs = []
    for index in range(PAIRS):
        prompt, chosen, rejected = ids(1, 8), ids(1, 9), ids(1, 9)
        if index % 3 == 1:  # a pair that shares the prompt and a completion of the previous pair
            prompt, rejected = pairs[-1].prompt_ids, pairs[-1].chosen_ids
        scores = [draw.uniform(-6, -2, len(part)).astype(np.float32) for part in (chosen, rejected)]
        if index % 3 == 1:
            scores[1] = pairs[-1].ref_chosen_logps
        pairs.append(ScoredPair(f"pair-{index}", prompt, chosen, rejected, *scores))
    return pairs


class Update(NamedTuple):
    """The result of one update over all ranks."""

    loss: float
    gradient: Tensor
    """Gradient of all parameters, concatenated, [parameters]."""
    reward_mean: float


class Engine:
    """The part of a DeepSpeed engine's interface that the training loop uses; gradients accumulate in the model."""

    device = torch.device("cpu")

    def eval(self) -> None:
        self._policy.eval()

    def train(self) -> None:
        self._policy.train()

    def __init__(self, policy: CompletionLogps) -> None:
        self._policy = policy
        self.boundaries: list[bool] = []

    def __call__(self, *inputs: Any) -> tuple[Tensor, ...]:
        return self._policy(*inputs)

    def set_gradient_accumulation_boundary(self, is_boundary: bool) -> None:
        self.boundaries.append(is_boundary)

    def backward(self, loss: Tensor) -> None:
        loss.backward()


def gradient_of(policy: CompletionLogps) -> Tensor:
    """Return the gradients of all parameters, concatenated."""
    return torch.cat([parameter.grad.flatten() for parameter in policy.parameters() if parameter.grad is not None])


def batch_of(
    split: Split, loss: LossConfig, rank: int, pairs: Sequence[ScoredPair] | None = None, start: int = 0
) -> RankBatch:
    """Return a rank's batch: its micro-batches under a split of the pairs, by default those of `scored_pairs`."""
    pairs, prompts = pairs or scored_pairs(), counts_prompts(loss)

    def collate(group: Sequence[int]) -> MicroBatch:
        members = [pairs[index] for index in group]
        return collate_scored(build_prompt_trees(members, 10**6), members, with_prompts=prompts)

    return RankBatch(
        start=start,
        stop=start + len(pairs),
        micro_batches=tuple(collate(group) for group in split[rank]),
        tokens=0,
        computed_tokens=0,
        flops=0.0,
        nll_tokens=sum(pair.weight * (len(pair.chosen_ids) + (len(pair.prompt_ids) - 1) * prompts) for pair in pairs),
        weight=sum(pair.weight for pair in pairs),
        pair_ids=(),
    )


def update(
    split: Split,
    loss: LossConfig,
    rank: int,
    dropout: float = 0.0,
    *,
    shares: bool = True,
    pairs: Sequence[ScoredPair] | None = None,
) -> Update:
    """Run this rank's part of an update, and return the result over all ranks."""
    policy = CompletionLogps(model(dropout, shares), shares=shares)
    engine = Engine(policy)
    objective, sums = Objective(loss, 0.0, RewardMean()), MetricSums()
    batch = batch_of(split, loss, rank, pairs)
    for _ in train_micro_batches(engine, batch, objective, sums, seed=SEED, with_statistics=True):
        pass
    assert engine.boundaries == [False] * (len(split[rank]) - 1) + [True]
    gradient = gradient_of(policy)
    torch.distributed.all_reduce(gradient)  # with the division below, DeepSpeed's average over ranks
    return Update(sums.means(engine.device)["loss"], gradient / len(split), objective.rewards.value)


def run_rank(
    rank: int,
    splits: Sequence[Split],
    losses: Sequence[LossConfig],
    folder: str,
    pairs: Sequence[ScoredPair] | None = None,
) -> None:
    """Run all updates of one rank in its own process; rank 0 writes the results to `folder`/updates.pt."""
    torch.set_num_threads(1)
    world = len(splits[0])
    torch.distributed.init_process_group("gloo", init_method=f"file://{folder}/group", rank=rank, world_size=world)
    updates = [[tuple(update(split, loss, rank, pairs=pairs)) for split in splits] for loss in losses]
    if rank == 0:
        torch.save(updates, Path(folder) / "updates.pt")
    torch.distributed.destroy_process_group()


def run_in_processes(
    splits: Sequence[Split],
    losses: Sequence[LossConfig],
    folder: Path,
    pairs: Sequence[ScoredPair] | None = None,
) -> list[list[Update]]:
    """Run each loss under each split with one process per rank, and return the updates, [loss][split].

    All splits must have the same number of ranks.
    """
    torch.multiprocessing.spawn(run_rank, (splits, losses, str(folder), pairs), nprocs=len(splits[0]))
    return [[Update(*values) for values in row] for row in torch.load(folder / "updates.pt")]
