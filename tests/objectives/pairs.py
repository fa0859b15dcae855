"""Pairs for the tests of objectives."""

from typing import Any

import torch
from torch import Tensor

from raydpo.objectives.pairs import COLUMNS, PairLogps, from_table

# a = -10 + 12 = 2, b = -14 + 13 = -1, h = a - b = 3
DEFAULT_PAIR = {
    "chosen": -10.0,
    "rejected": -14.0,
    "ref_chosen": -12.0,
    "ref_rejected": -13.0,
    "chosen_tokens": 4.0,
    "rejected_tokens": 5.0,
    "nll": 10.0,
    "nll_tokens": 4.0,
    "weights": 1.0,
    "sample_weights": 1.0,
    "margins": 0.0,
}


def pairs_of(*rows: dict[str, float]) -> PairLogps:
    """Return a global batch with one pair per row: the default pair with the values of the row."""
    return from_table(
        torch.tensor([[{**DEFAULT_PAIR, **row}[name] for name in COLUMNS] for row in rows], dtype=torch.float64)
    )


def random_table(count: int, seed: int = 0) -> Tensor:
    """Return `count` pairs with log-probs of a few nats per token, as a table in float64."""
    generator = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float) -> Tensor:
        return low + (high - low) * torch.rand(count, generator=generator, dtype=torch.float64)

    columns: dict[str, Any] = {name: draw(-8, -2) for name in ("chosen", "rejected", "ref_chosen", "ref_rejected")}
    columns |= {name: draw(2, 9).floor() for name in ("chosen_tokens", "rejected_tokens", "nll_tokens")}
    columns |= {"nll": -columns["chosen"], "weights": torch.ones(count, dtype=torch.float64)}
    columns |= {"sample_weights": torch.ones(count, dtype=torch.float64), "margins": torch.zeros_like(columns["nll"])}
    return torch.stack([columns[name] for name in COLUMNS], dim=1)
