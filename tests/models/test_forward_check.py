"""The proof at load: what it finds, what it does about it, and that sound models pass it."""

import logging
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertLMHeadModel,
    CohereConfig,
    CohereForCausalLM,
    CwmConfig,
    CwmForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from raydpo.errors import ModelError
from raydpo.models import completion_logps
from raydpo.models.attention.segments import Segments
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.forward_check import CheckedModel, ForwardCheck, check_forward
from raydpo.models.logit_transform import LogitTransform
from raydpo.models.probe_sequences import ProbeSequences
from tests.models.packed import SHAPE as TINY
from tests.models.packed import packed, pairs, plain_logits, sharing

SHAPE = {**TINY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}

STATE: dict[str, Any] = {"vocab_size": 61, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}


def windowed() -> Any:
    """Return a Mistral with a window shorter than the sequences."""
    torch.manual_seed(0)
    return MistralForCausalLM(MistralConfig(**SHAPE, sliding_window=4, initializer_range=0.15))


def check(model: Any, *, shares: bool = False, trains: bool = False) -> tuple[CompletionLogps, ForwardCheck]:
    """Return the wrapped model, and the result of its proof."""
    policy = CompletionLogps(sharing(model) if shares else model, shares=shares)
    dtype = str(next(model.parameters()).dtype).removeprefix("torch.")
    return policy, check_forward(CheckedModel(policy, policy, dtype, trains))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shares", [True, False])
def test_a_sound_model_passes(shares: bool, dtype: torch.dtype) -> None:
    _, found = check(windowed().to(dtype), shares=shares, trains=True)
    assert found.layout == ("packed" if shares else "padded")
    assert found.fallback is None
    assert found.train_gap is not None
    assert max(found.gap, found.train_gap) <= found.tolerance / 10
    assert found.summary()["tolerance"] == found.tolerance


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_packed_rows_that_miss_a_window_give_way_to_padded_rows(
    dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Segments, "window", lambda self, sliding_window: None)
    with caplog.at_level(logging.WARNING):
        policy, found = check(windowed().to(dtype), shares=True)
    assert found.layout == "padded"
    assert found.fallback is not None
    assert "nats per token" in found.fallback
    assert "packed rows of MistralForCausalLM are given up for padded rows" in caplog.text
    batch = packed(pairs())
    with torch.no_grad():
        logits, targets = plain_logits(windowed().to(dtype), pairs(), batch)
        logps = policy(batch)[0][torch.from_numpy(batch.target_index)]
    expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
    assert (logps - expected).abs().mean() <= found.tolerance


@pytest.mark.parametrize("shares", [True, False])
def test_a_scale_that_is_missed_is_refused(shares: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(completion_logps, "fit_transform", lambda *_: LogitTransform())
    with pytest.raises(ModelError, match=r"CohereForCausalLM \(cohere\): log-probs differ from its own forward's by"):
        check(CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25)), shares=shares)


def test_layers_that_do_not_take_packed_rows_give_way_to_padded_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(self: Segments, sliding_window: int | None) -> None:
        raise TypeError("an argument that no layer expects")

    monkeypatch.setattr(Segments, "window", fails)
    _, found = check(windowed(), shares=True)
    assert (found.layout, found.fallback) == (
        "padded",
        "its layers fail on them (TypeError: an argument that no layer expects)",
    )


def test_a_family_that_is_not_listed_shares_prompts_if_the_proof_holds() -> None:
    torch.manual_seed(0)
    _, found = check(CwmForCausalLM(CwmConfig(**SHAPE, sliding_window=4, initializer_range=0.15)), shares=True)
    assert (found.layout, found.fallback) == ("packed", None)
    policy, found = check(MambaForCausalLM(MambaConfig(**STATE)), shares=True)
    assert found.layout == "padded", "a state over the row is not that of each sequence"
    assert not policy.shares


def test_noise_in_training_mode_is_refused() -> None:
    model = MixtralForCausalLM(MixtralConfig(**SHAPE, num_local_experts=4, router_jitter_noise=0.5))
    _, found = check(model)
    assert found.train_gap is None
    with pytest.raises(ModelError, match=r"in training mode .* random in training mode .* disable_dropout=false"):
        check(MixtralForCausalLM(model.config), trains=True)


def test_a_model_that_sees_later_tokens_is_refused() -> None:
    with pytest.raises(ModelError, match=r"BertLMHeadModel \(bert\) .* no causal language model.* is_decoder=true"):
        check(BertLMHeadModel(BertConfig(**SHAPE)))


def test_logits_that_are_not_numbers_are_refused() -> None:
    model = windowed()
    with torch.no_grad():
        model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(ModelError, match="are not numbers in float32"):
        check(model)


def test_the_sequences_have_no_special_tokens_and_fit_into_the_model() -> None:
    config = MistralConfig(**SHAPE | {"eos_token_id": [2, 9], "max_position_embeddings": 30}, image_token_index=11)
    sequences = ProbeSequences.draw(config, 61)
    rows = [*sequences.rows[0], *sequences.rows[1]]
    assert not {0, 1, 2, 9, 11} & {int(token) for row in rows for token in row}
    assert max(map(len, rows)) == 30
    longer = ProbeSequences.draw(MistralConfig(**SHAPE, sliding_window=70), 61)
    assert longer.rows[1].shape[1] > 140
    assert all(
        (first == again).all() for first, again in zip(rows[2:], ProbeSequences.draw(config, 61).rows[1], strict=True)
    )
