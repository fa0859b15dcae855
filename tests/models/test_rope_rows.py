"""Models whose rotary factors depend on the longest row: each sequence has the log-probs that it has alone."""

from typing import Any

import pytest
import torch
from transformers import (
    DeepseekV2Config,
    DeepseekV2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
)

from raydpo.models.attention.choice import choose, follows_own_length
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.forward_check import CheckedModel, check_forward
from raydpo.models.loading import disable_dropout
from raydpo.models.rope_limit import rope_limit
from tests.models.packed import SHAPE as TINY
from tests.models.packed import packed, pairs, plain_logits, sharing

ORIGINAL = 12
"""Length of pretraining, in tokens: the sequences of `pairs` have 3 to 17."""
SHAPE = {**TINY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.15}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 4,
    "long_factor": [4.0] * 4,
    "original_max_position_embeddings": ORIGINAL,
    "factor": 4.0,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}
PLAIN = {"rope_type": "default", "rope_theta": 10_000.0}


def longrope() -> Any:
    """Return a Phi-3 whose factors are others beyond the length of pretraining."""
    torch.manual_seed(0)
    config = Phi3Config(**SHAPE, original_max_position_embeddings=ORIGINAL, rope_parameters=LONGROPE)
    return Phi3ForCausalLM(config)


def dynamic() -> Any:
    """Return a Llama whose factors grow with the longest sequence so far."""
    torch.manual_seed(0)
    config = LlamaConfig(**SHAPE, max_position_embeddings=ORIGINAL, rope_parameters=DYNAMIC)
    return LlamaForCausalLM(config)


def by_layer() -> Any:
    """Return a Gemma 3 of whose layers only those with full attention have such factors."""
    torch.manual_seed(0)
    config = Gemma3TextConfig(
        **SHAPE,
        head_dim=8,
        max_position_embeddings=ORIGINAL,
        layer_types=["sliding_attention", "full_attention"],
        rope_parameters={"full_attention": DYNAMIC, "sliding_attention": PLAIN},
        attn_implementation="eager",
    )
    return Gemma3ForCausalLM(config)


def complex_factors() -> Any:
    """Return a DeepSeek-V2, whose factors are one complex tensor."""
    torch.manual_seed(0)
    config = DeepseekV2Config(
        **SHAPE | {"num_key_value_heads": 4},
        q_lora_rank=16,
        kv_lora_rank=16,
        qk_rope_head_dim=8,
        qk_nope_head_dim=16,
        v_head_dim=8,
        first_k_dense_replace=2,
        max_position_embeddings=ORIGINAL,
        rope_parameters=DYNAMIC,
    )
    return DeepseekV2ForCausalLM(config)


MODELS = {"longrope": longrope, "dynamic": dynamic, "by layer": by_layer, "complex": complex_factors}


def forgetful(model: Any) -> Any:
    """Make a plain model forget the lengths that it has seen, before each forward."""
    forward = model.forward

    def forget(**arguments: Any) -> Any:
        with torch.no_grad():
            forward(input_ids=torch.tensor([[5]]))
        return forward(**arguments)

    model.forward = forget
    return model


@pytest.mark.parametrize("name", sorted(MODELS))
def test_each_sequence_has_the_log_probs_and_gradients_that_it_has_alone(name: str) -> None:
    plain = forgetful(MODELS[name]())
    policy = CompletionLogps(MODELS[name](), shares=False)
    batches = [packed(pairs()), packed(pairs()[:1]), packed(pairs()[1:2]), packed(pairs())]
    for batch in batches:
        logits, targets = plain_logits(plain, pairs(), batch)
        expected = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
        found = policy(batch)[0][torch.from_numpy(batch.target_index)]
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    weights = torch.randn(len(expected))
    gradients = torch.autograd.grad((expected * weights).sum(), list(plain.parameters()))
    ours = torch.autograd.grad((found * weights).sum(), list(policy.causal_lm.parameters()))
    for gradient, right in zip(ours, gradients, strict=True):
        assert (gradient - right).norm() <= 1e-4 * right.norm()


@pytest.mark.parametrize("name", sorted(MODELS))
def test_without_the_rule_neighbours_would_change_the_log_probs(name: str) -> None:
    alone, beside = (packed(pairs()[1:2]), packed(pairs()))
    found = []
    for batch in (alone, beside):
        policy = CompletionLogps(MODELS[name](), shares=False)
        policy._row_lengths.set = lambda lengths: None  # type: ignore[method-assign, union-attr]
        chosen = batch.pair_ids.index("b")
        tokens = torch.from_numpy(batch.target_index[batch.sequence_index == chosen])
        found.append(policy(batch)[0][tokens].detach())
    assert (found[0] - found[1]).abs().max() > 1e-3


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_proof_holds_for_them(name: str) -> None:
    model = MODELS[name]()
    disable_dropout(model)
    policy = CompletionLogps(model, shares=False)
    check = check_forward(CheckedModel(policy, policy, "float32", trains=True))
    assert check.gap <= check.tolerance / 10


def test_packed_rows_are_right_where_no_sequence_is_longer_than_pretraining() -> None:
    config = longrope().config
    sharable = {"attn_implementation": None, "share_prompts": True, "gpu": False, "dtype": "float32"}
    assert choose(config, **sharable, max_length=8).shares
    assert "depend on each sequence's length beyond 12 tokens" in choose(config, **sharable, max_length=32).reason
    assert "depend on each sequence's length" in choose(config, **sharable).reason
    assert follows_own_length(config, 32)
    assert not follows_own_length(config, 8)

    model = sharing(longrope())
    disable_dropout(model)
    policy = CompletionLogps(model, shares=True)
    check = check_forward(CheckedModel(policy, policy, "float32", trains=True))
    assert (check.layout, check.fallback) == ("packed", None)


def test_other_models_have_no_such_length() -> None:
    assert rope_limit(LlamaConfig(**SHAPE)) is None
    yarn = {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16}
    assert rope_limit(LlamaConfig(**SHAPE, rope_parameters=yarn)) is None
    assert rope_limit(by_layer().config) == ORIGINAL
