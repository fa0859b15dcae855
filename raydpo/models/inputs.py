"""The arguments of a model's forward for a micro-batch, in each of the layouts that models take."""

from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch

from raydpo.batching.micro_batch import MicroBatch
from raydpo.blocks.schema import IntArray
from raydpo.models.attention.padded import to_padded_rows
from raydpo.models.attention.segments import Segments
from raydpo.models.device import to_device


@dataclass(frozen=True)
class BodyInputs:
    """The input of a model's body, which returns hidden states of R rows of T tokens."""

    arguments: dict[str, Any]
    """Keyword arguments of the body's forward."""
    predictors: IntArray
    """[N]: index into the flattened R * T tokens of the token that predicts each of `MicroBatch.targets`."""
    multiplicity: IntArray
    """[R, T]: number of the 2B sequences that contain each token; 0 for padding."""
    encoding: AbstractContextManager[None] = field(default_factory=nullcontext)
    """Context of the forward, in which each of its images is encoded once."""


def packed_inputs(micro_batch: MicroBatch, device: torch.device) -> BodyInputs:
    """Return the packed row itself, for a model with one of the attention functions of `models.attention`."""
    arguments = {
        "input_ids": to_device(micro_batch.input_ids[None], device),
        "position_ids": to_device(micro_batch.position_ids[None], device),
        "attention_mask": None,
        "segments": Segments(micro_batch.layout, device),
    }
    return BodyInputs(arguments, micro_batch.predictors, micro_batch.multiplicity[None])


def padded_inputs(micro_batch: MicroBatch, device: torch.device) -> BodyInputs:
    """Return a padded row per completion, for any decoder."""
    rows = to_padded_rows(micro_batch)
    arguments = {
        "input_ids": to_device(rows.input_ids, device),
        "attention_mask": to_device(rows.attention_mask, device),
    }
    return BodyInputs(arguments, rows.predictors, rows.multiplicity)
