"""The proof, when a model is loaded, that its log-probs here are those of its own forward.

Scorer and trainer share their code, so that a comparison of the two finds no fault that both have. The oracle here is
the model itself: the log-softmax of the logits that `forward` of transformers (or of the model's own code) gives for
short sequences, each without padding or neighbours, with the attention that the model has by itself.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from raydpo.batching.collate import split_by_completion
from raydpo.batching.micro_batch import MicroBatch
from raydpo.errors import ModelError
from raydpo.models.comparison import mean_gap, spread_of, without_compilation
from raydpo.models.completion_logps import CompletionLogps, PlainRows
from raydpo.models.logit_transform import RULED_OUT
from raydpo.models.probe_sequences import BEGINNING, ProbeSequences
from raydpo.models.rope_limit import rope_limit

_log = logging.getLogger(__name__)

TOLERANCES = {"float32": (2e-4, 1e-5), "bfloat16": (0.1, 0.02), "float16": (0.03, 5e-3), "quantized": (0.2, 0.05)}
"""Tolerance by dtype, as (share of the spread of the logits, nats).

The gap is the largest mean over a sequence's tokens of |log-prob here - log-prob of the model's own forward|. The
spread is the standard deviation of the logits over the vocabulary, mostly 2 to 4 nats in a trained model and 0.1 in one
with random weights: a scale or cap that is missed changes log-probs by about the spread, and a window, position or
neighbour that is missed by a good part of it. In float32, other kernels and shapes of batches change a log-prob by some
1e-5 of the spread, and by the rounding of a number of some nats (1e-6). bfloat16 rounds a logit of 16 to 0.06 nats and
hidden states to 0.4 %, and an expert may be chosen otherwise, which together is some 0.05 nats per token on average;
float16 has 8 times the precision. Quantised layers round with the batch that they see."""

FAILURES = (TypeError, ValueError, RuntimeError, AttributeError, LookupError, AssertionError, ModelError)
"""What a layer raises that was not made for packed rows: their arguments, shapes or mask are not what it expects."""


@dataclass(frozen=True)
class ForwardCheck:
    """The result of the proof, for the log and summary.json."""

    model_type: str
    layout: str
    """"packed" or "padded" rows, as the model will compute from now on."""
    dtype: str
    gap: float
    """Largest mean |difference| of a sequence, in nats per token, in evaluation mode."""
    train_gap: float | None
    """The gap in training mode; None where it was not looked at: in a scoring worker, and with dropout on."""
    tolerance: float
    """Largest gap that passes, in nats per token."""
    fallback: str | None = None
    """Why packed rows were given up; None where they were not."""

    def summary(self) -> dict[str, Any]:
        """Return the fields as a mapping for summary.json."""
        return asdict(self)

    def __str__(self) -> str:
        """Return one line for the log."""
        train = "" if self.train_gap is None else f" ({self.train_gap:.1e} in training mode)"
        return (
            f"{self.layout} rows of {self.model_type} give the log-probs of the model's own forward to "
            f"{self.gap:.1e} nats per token{train}; tolerance {self.tolerance:.1e} in {self.dtype}"
        )


@dataclass(frozen=True)
class CheckedModel:
    """What the proof needs to run a model."""

    policy: CompletionLogps
    run: nn.Module
    """The module to call: the policy itself, or the DeepSpeed engine around it."""
    dtype: str
    """A key of `TOLERANCES`."""
    trains: bool
    """Whether the model will be trained without dropout, so that training mode must be the same function."""
    multiple: int = 1
    """Packed rows are filled up to a multiple of this many tokens."""
    agree: Callable[[float], float] = float
    """Returns the largest of all ranks' values."""


@torch.no_grad()
def check_forward(model: CheckedModel) -> ForwardCheck:
    """Compare a model's log-probs with those of its own forward, log the result and return it.

    Where packed rows differ, the model takes padded rows from now on, with a warning. All ranks make the same forwards
    and come to the same result. Raises ModelError where padded rows differ too, or where the model is not causal.
    """
    policy = model.policy
    config, apart = policy.causal_lm.config, policy.is_encoder_decoder
    # Packed rows of such a model were chosen as no sequence of the run is longer.
    longest = rope_limit(config) if policy.shares else None
    sequences = ProbeSequences.draw(config, policy.vocabulary, longest, apart=apart)
    with without_compilation(policy):
        model.run.eval()
        oracle = _seq2seq_oracle(model, sequences) if apart else _oracle(model, sequences)
        found = _compare(model, sequences, oracle)
        fallback = None
        if policy.shares and found.problem:
            fallback = found.problem
            name = type(policy.causal_lm).__name__
            _log.warning("forward_check: packed rows of %s are given up for padded rows: %s", name, fallback)
            policy.take_padded_rows()
            found = _compare(model, sequences, oracle)
        if found.problem:
            raise _refusal(model, sequences, oracle, found.problem)
    if policy.learns_transform:
        raise ModelError(
            f"{type(policy.causal_lm).__name__} ({config.model_type}): its logits have a factor or a bias after the "
            "output embedding that is trained, which would stay as it is here; train with LoRA (use_peft=true), which "
            "freezes it, or choose another model"
        )
    check = ForwardCheck(
        model_type=policy.causal_lm.config.model_type,
        layout="packed" if policy.shares else "padded",
        dtype=model.dtype,
        gap=found.gap,
        train_gap=found.train_gap,
        tolerance=oracle.tolerance,
        fallback=fallback,
    )
    _log.info("forward_check: %s", check)
    return check


@dataclass(frozen=True)
class _Oracle:
    """What the model's own forward says."""

    logps: list[Tensor]
    """Log-probs [tokens] of each of the four completions of `ProbeSequences`, in order."""
    tolerance: float


@dataclass(frozen=True)
class _Found:
    """How far the model is from its own forward."""

    gap: float
    train_gap: float | None
    problem: str
    """What is wrong, as a clause; empty if nothing is."""


def _oracle(model: CheckedModel, sequences: ProbeSequences) -> _Oracle:
    """Run the model's own forward. Raises ModelError where later tokens change what it predicts before them."""
    start = len(sequences.prompt)
    (both, single), tolerance = _own_logps(model, [PlainRows(rows) for rows in sequences.rows])
    seen = (both[0, :start] - both[1, :start]).abs()
    mixed = model.agree(float(seen.where(both[0, :start] > RULED_OUT, 0.0).mean(-1).max()))
    if mixed > tolerance:
        policy = model.policy
        raise ModelError(
            f"{type(policy.causal_lm).__name__} ({policy.causal_lm.config.model_type}) predicts a prompt's tokens "
            f"otherwise by {mixed:.2g} nats when what follows is another completion, so it is no causal language model "
            "and its log-probs mean nothing; choose a decoder, or set is_decoder=true in its config.json if it was "
            "trained as one"
        )

    def picked(row: Tensor, completion: Any, begin: int) -> Tensor:
        targets = torch.from_numpy(np.asarray(completion)).to(row.device)
        return row[begin - 1 : begin - 1 + len(targets)].gather(1, targets[:, None])[:, 0].cpu()

    other = len(sequences.other_prompt)
    chosen = [picked(row, completion, start) for row, completion in zip(both, sequences.completions, strict=True)]
    long = picked(single[0], sequences.long, other)
    beginning = long[:BEGINNING]
    if rope_limit(model.policy.causal_lm.config):  # a shorter sequence is no beginning of a longer one
        (logits,) = model.run(PlainRows(sequences.beginning))
        beginning = picked(logits[0].float().log_softmax(dim=-1), sequences.long[:BEGINNING], other)
    return _Oracle([*chosen, long, beginning], tolerance)


def _own_logps(model: CheckedModel, batches: Sequence[PlainRows]) -> tuple[list[Tensor], float]:
    """Return the log-probs [R, T, V] of the model's own forward of each batch, and the tolerance."""
    logps, spreads = [], []
    for rows in batches:
        try:
            (logits,) = model.run(rows)
        except (ModelError, torch.OutOfMemoryError):
            raise
        except FAILURES as error:
            raise _failure(model, "its own forward fails on token ids alone", error) from error
        logits = logits.float()
        if model.agree(float(logits.isnan().any())):
            raise _nan(model)
        spreads.append(spread_of(logits))
        logps.append(logits.log_softmax(dim=-1))
    share, nats = TOLERANCES[model.dtype]
    return logps, share * model.agree(max(spreads)) + nats


def _seq2seq_oracle(model: CheckedModel, sequences: ProbeSequences) -> _Oracle:
    """Run the own forward of an encoder-decoder, which makes the decoder's input from the completions itself."""
    both, long = np.stack(sequences.completions), sequences.long[None]
    prompts, other = np.stack([sequences.prompt] * len(both)), sequences.other_prompt[None]
    labels = [both, long, long[:, :BEGINNING]]
    logps, tolerance = _own_logps(model, list(map(PlainRows, [prompts, other, other], labels)))
    found = []
    for targets, values in zip(labels, logps, strict=True):
        picked = values.gather(2, torch.from_numpy(targets).to(values.device)[:, :, None])
        found += list(picked[:, :, 0].cpu())
    return _Oracle(found, tolerance)


def _compare(model: CheckedModel, sequences: ProbeSequences, oracle: _Oracle) -> _Found:
    """Return how far the model's log-probs are from the oracle, in evaluation and, if it trains, in training mode."""
    batch = sequences.micro_batch(multiple=model.multiple if model.policy.shares else 1)
    gap, train_gap = float("inf"), None
    try:
        gap = _gap(model, batch, sequences, oracle)
    except FAILURES as error:
        padded = not model.policy.shares
        if isinstance(error, torch.OutOfMemoryError) or (padded and isinstance(error, ModelError)):
            raise
        if padded:
            raise _failure(model, "its layers fail on padded rows", error) from error
        return _Found(gap, None, f"its layers fail on them ({type(error).__name__}: {str(error).splitlines()[0]})")
    problem = _problem(gap, oracle.tolerance, "")
    if model.trains and not problem:
        model.run.train()
        try:
            train_gap = _gap(model, batch, sequences, oracle)
        except (ModelError, torch.OutOfMemoryError):
            raise
        except FAILURES as error:
            raise _failure(model, "its layers fail in training mode", error) from error
        model.run.eval()
        problem = _problem(train_gap, oracle.tolerance, " in training mode")
    return _Found(gap, train_gap, problem)


def _problem(gap: float, tolerance: float, where: str) -> str:
    if gap <= tolerance:
        return ""
    return f"log-probs differ{where} from its own forward's by {gap:.2g} nats per token, more than {tolerance:.2g}"


def _gap(model: CheckedModel, batch: MicroBatch, sequences: ProbeSequences, oracle: _Oracle) -> float:
    """Return the largest mean |difference| of a sequence that the micro-batch has, over all ranks."""
    values = model.run(batch)[0].float().cpu().numpy()
    trees, owns = sequences.trees[: len(batch.images)], [own.numpy() for own in oracle.logps]
    parts = [part for tree in split_by_completion(values, trees) for part in tree]
    return model.agree(max(mean_gap(part, own) for part, own in zip(parts, owns, strict=False)))


def _nan(model: CheckedModel) -> ModelError:
    return ModelError(
        f"the logits of {type(model.policy.causal_lm).__name__} are not numbers in {model.dtype}; compute in a wider "
        "dtype (bf16=true instead of fp16, or dtype=float32), or check the model's files"
    )


def _failure(model: CheckedModel, what: str, error: Exception) -> ModelError:
    """Return the error for a model whose layers raise `error`."""
    config, reason = model.policy.causal_lm.config, " ".join(str(error).split())[:300]
    return ModelError(
        f"{type(model.policy.causal_lm).__name__} ({config.model_type}): {what} "
        f"({type(error).__name__}: {reason}); choose another model or another attn_implementation"
    )


def _refusal(model: CheckedModel, sequences: ProbeSequences, oracle: _Oracle, problem: str) -> ModelError:
    """Return the error for a model whose padded rows differ too, with the likely reason."""
    policy = model.policy
    model.run.eval()
    name = f"{type(policy.causal_lm).__name__} ({policy.causal_lm.config.model_type})"
    if "in training mode" in problem:
        reason = "its layers are random in training mode (noise on a router) or compute another function there"
        remedy = "set disable_dropout=false to train it with that noise"
    elif policy.head_is_more_than_a_matrix:
        reason = "its output embedding does not compute hidden W^T + b, which is all that is computed here"
        remedy = "choose another model"
    elif _gap(model, sequences.micro_batch(alone=True), sequences, oracle) <= oracle.tolerance:
        reason = "a sequence alone is right, so it depends on the padding or the longest sequence beside it"
        remedy = "choose another model"
    else:
        reason = "its layers need arguments that are not given here, or depend on the length of the row"
        remedy = "choose another model or another attn_implementation"
    return ModelError(f"{name}: {problem}; {reason}; {remedy}")
