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


def test_an_output_embedding_that_is_more_than_a_matrix_is_refused() -> None:
    class Normed(torch.nn.Linear):
        def forward(self, hidden: torch.Tensor) -> torch.Tensor:
            return torch.nn.functional.linear(hidden, torch.nn.functional.normalize(self.weight))

    model = windowed()
    model.lm_head = Normed(32, 61, bias=False)
    with pytest.raises(ModelError, match=r"log-probs differ .* its output embedding does not compute hidden W\^T \+ b"):
        check(model)


def test_a_weight_beside_that_of_the_output_embedding_is_refused() -> None:
    class Scaled(torch.nn.Linear):
        def __init__(self) -> None:
            super().__init__(32, 61, bias=False)
            self.factor = torch.nn.Parameter(torch.ones(()))

    model = windowed()
    model.lm_head = Scaled()
    with pytest.raises(ModelError, match=r"a Scaled, has factor beside its weight .* neither trained nor exported"):
        check(model)


class Own(MistralForCausalLM):
    """A Mistral with code of its own: a bias that is trained, and entries of the vocabulary that are ruled out."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.shift = torch.nn.Parameter(torch.randn(61))

    def forward(self, input_ids: Any) -> Any:
        """Return the logits alone; the model takes no mask."""
        (logits,) = super().forward(input_ids, return_dict=False, use_cache=False)[:1]
        return (logits + self.shift).masked_fill(torch.arange(61) % 5 == 0, float("-inf"))


def test_a_trained_bias_after_the_output_embedding_is_refused_and_a_frozen_one_is_right() -> None:
    torch.manual_seed(0)
    model = Own(MistralConfig(**SHAPE, initializer_range=0.15))
    with pytest.raises(ModelError, match=r"a factor or a bias .* that is trained, .* train with LoRA"):
        check(model)
    model = Own(model.config)
    model.shift.requires_grad_(False)
    _, found = check(model, trains=True)
    assert found.gap <= found.tolerance / 10


def test_logits_of_the_last_token_alone_are_refused() -> None:
    class Last(MistralForCausalLM):
        def forward(self, *arguments: Any, **named: Any) -> Any:
            return super().forward(*arguments, **named, logits_to_keep=1)

    with pytest.raises(ModelError, match=r"Last gives logits of shape \[2, 1, 61\] for \[2, 16\] token ids"):
        check(Last(MistralConfig(**SHAPE)))


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
    config = MistralConfig(
        **SHAPE | {"eos_token_id": [2, 9], "max_position_embeddings": 30}, image_token_index=11, im_start_id=12
    )
    sequences = ProbeSequences.draw(config, 61)
    rows = [*sequences.rows[0], *sequences.rows[1]]
    assert not {0, 1, 2, 9, 11, 12} & {int(token) for row in rows for token in row}
    assert max(map(len, rows)) == 30
    few = ProbeSequences.draw(MistralConfig(**SHAPE | {"vocab_size": 3}), 3)
    assert {int(token) for token in few.rows[1][0]} <= {0, 1, 2}
    longer = ProbeSequences.draw(MistralConfig(**SHAPE, sliding_window=70), 61)
    assert longer.rows[1].shape[1] > 140
    assert all(
        (first == again).all() for first, again in zip(rows[2:], ProbeSequences.draw(config, 61).rows[1], strict=True)
    )
