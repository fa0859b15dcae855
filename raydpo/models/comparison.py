"""What the two comparisons of log-probs with a model's own forward share: that at load, and that of the export."""

from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor, nn

from raydpo.blocks.schema import FloatArray
from raydpo.models.logit_transform import RULED_OUT


def mean_gap(ours: FloatArray, own: FloatArray) -> float:
    """Return the mean |difference| of a sequence's log-probs [tokens], in nats; infinite where one is not a number.

    A token that the model rules out has some lowest log-prob or other, so that those below RULED_OUT are equal.
    """
    gap = float(np.abs(np.maximum(ours, RULED_OUT) - np.maximum(own, RULED_OUT)).mean())
    return float("inf") if np.isnan(gap) else gap


def spread_of(logits: Tensor) -> float:
    """Return the standard deviation of logits [..., V] over the vocabulary, without those that the model rules out."""
    usable = torch.where(logits > RULED_OUT, logits, torch.nan)
    return float((usable - usable.nanmean(-1, keepdim=True)).square().nanmean().sqrt())


def without_compilation(policy: nn.Module) -> AbstractContextManager[object]:
    """Return a context in which compiled layers run as they are: the short sequences would be compiled for nothing."""
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in policy.modules()):
        stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
        return stance
    return nullcontext()
