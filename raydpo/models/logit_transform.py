"""What a model does to its logits after its output embedding: found by running the model's own code on chosen values.

Legend of shape suffixes: P values, C tokens of a chunk, V vocabulary.
"""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from raydpo.errors import ModelError

MASKED = -1e9
"""Logit of a vocabulary entry that the model rules out: its probability is 0 in float32, and no sum of it overflows."""
RULED_OUT = -1e4
"""An entry whose logit is below this value, whatever the output embedding gives, counts as masked."""
STEP = 2.0**-20
"""Distance from 0 at which a slope is measured: tanh is linear there to 12 digits."""
SATURATED = 2.0**40
"""Value beyond which a soft cap is constant."""
VALUES = (0.0, STEP, 0.25, 1.0, 3.0, 9.0, 27.0, 100.0, 1000.0, SATURATED)
AGREEMENT = 1e-6
"""Relative tolerance within which a model's values must follow the formula: some models compute them in float32."""


@dataclass(frozen=True)
class LogitTransform:
    """The function c * tanh(s * logits / c), or s * logits without a cap, with some entries masked."""

    scale: float = 1.0
    """Factor s on the logits (such as Cohere's `logit_scale`, or 1 / Granite's `logits_scaling`)."""
    softcap: float | None = None
    """Gemma's `final_logit_softcapping` c; None for no soft cap."""
    masked: Tensor | None = field(default=None, compare=False)
    """[V] bool: entries that get no probability, as those that only fill the embedding up; None without any."""

    def __call__(self, logits_CV: Tensor) -> Tensor:
        """Return the transformed logits, [C, V]."""
        logits_CV = logits_CV * self.scale if self.scale != 1.0 else logits_CV
        if self.softcap is not None:
            logits_CV = self.softcap * torch.tanh(logits_CV / self.softcap)
        return logits_CV if self.masked is None else logits_CV.masked_fill_(self._mask(logits_CV), MASKED)

    def mean(self, transformed_CV: Tensor) -> Tensor:
        """Return the mean [C] over the entries of the vocabulary that are not masked."""
        if self.masked is None:
            return transformed_CV.mean(dim=-1)
        mask_V = self._mask(transformed_CV)
        return transformed_CV.masked_fill(mask_V, 0.0).sum(dim=-1) / (~mask_V).sum()

    def backward(self, transformed_CV: Tensor, grad_CV: Tensor) -> Tensor:
        """Return the gradient with respect to the logits, [C, V].

        `transformed_CV` are the transformed logits and `grad_CV` is the gradient with respect to them.
        """
        if self.softcap is not None:
            grad_CV = grad_CV * (1 - (transformed_CV / self.softcap) ** 2)
        return grad_CV * self.scale if self.scale != 1.0 else grad_CV

    def _mask(self, logits_CV: Tensor) -> Tensor:
        assert self.masked is not None
        return self.masked.to(logits_CV.device)


def probe_logits(vocabulary: int, device: torch.device) -> Tensor:
    """Return logits [1, P, V] in float64 from which `fit_transform` tells what a model does to its logits.

    Each entry of the vocabulary sees each value once, and neighbours see different ones, so that code that treats
    entries or positions differently, or mixes entries, does not go unnoticed.
    """
    values_P = torch.tensor([*VALUES, *(-value for value in VALUES[1:])], dtype=torch.float64, device=device)
    rows = torch.arange(len(values_P), device=device)[:, None]
    return values_P[(rows + torch.arange(vocabulary, device=device)) % len(values_P)][None]


def fit_transform(probe: Tensor, found: Tensor, model: str) -> LogitTransform:
    """Return the transform that makes `found` [1, P, W] of `probe` [1, P, V]; fewer entries W are the first of V.

    `model` names the model's class in messages. Raises ModelError where no transform of this form does it.
    """
    raw_PV, found_PV = probe[0], found.detach().double().reshape(-1, found.shape[-1])
    vocabulary, kept = raw_PV.shape[-1], found_PV.shape[-1]
    if len(found_PV) != len(raw_PV) or kept > vocabulary:
        raise _refusal(model, f"makes logits of shape {list(found.shape)} of output of shape {list(probe.shape)}")
    masked_V = torch.ones(vocabulary, dtype=torch.bool, device=raw_PV.device)
    masked_V[:kept] = found_PV.amax(dim=0) < RULED_OUT
    if masked_V.all():
        raise _refusal(model, "gives no entry of the vocabulary a probability")
    transform = _curve(raw_PV[:, :kept][:, ~masked_V[:kept]], found_PV[:, ~masked_V[:kept]], model)
    if not masked_V.any():
        return transform
    return LogitTransform(transform.scale, transform.softcap, masked_V)


def _curve(raw_PV: Tensor, found_PV: Tensor, model: str) -> LogitTransform:
    """Return scale and soft cap that map all of `raw_PV` to `found_PV`."""

    def at(value: float) -> float:
        return float(found_PV[raw_PV == value][0])

    if at(0.0) != 0.0:
        raise _refusal(model, f"adds {at(0.0):g} to its logits after the output embedding")
    cap, slope = at(SATURATED), at(STEP) / STEP
    if abs(cap) < abs(slope) * SATURATED / 2:
        transform = LogitTransform(1.0 if abs(slope - 1.0) < AGREEMENT else slope, cap or None)
    else:
        transform = LogitTransform(at(1.0))
    expected_PV = transform(raw_PV)
    if bool(((found_PV - expected_PV).abs() <= AGREEMENT * (1.0 + expected_PV.abs())).all()):
        return transform
    raise _refusal(model, "changes its logits by more than a factor, a soft cap and a mask of the vocabulary")


def _refusal(model: str, what: str) -> ModelError:
    return ModelError(
        f"{model} {what}, and only s * logits, c * tanh(s * logits / c) and masked entries of the vocabulary can be "
        "computed here; choose another model"
    )
