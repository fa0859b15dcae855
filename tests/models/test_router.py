"""The auxiliary loss of mixture-of-experts models, compared with the model's own loss for the same rows."""

from typing import Any

import pytest
import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

from raydpo.errors import ModelError
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.head import TokenLogps
from raydpo.models.loading import enable_gradient_checkpointing
from raydpo.models.router import router_loss
from tests.models.packed import SHAPE, packed, pairs, sequences, sharing

MODELS: dict[str, Any] = {
    "mixtral": lambda: MixtralForCausalLM(
        MixtralConfig(**SHAPE, num_local_experts=2, num_experts_per_tok=1, router_aux_loss_coef=0.02)
    ),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(**SHAPE, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=16, head_dim=8)
    ),
}


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_value_and_gradient_are_the_models_own(name: str, shares: bool, checkpointing: bool) -> None:
    """Compare with all 2B sequences in separate rows, although the batch has each prompt and completion only once."""
    torch.manual_seed(0)
    model = MODELS[name]().train()
    batch = packed(pairs(), multiple=16)
    rows = [ids for ids, _ in sequences(pairs(), batch)]
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    expected = model(input_ids=ids, attention_mask=mask, output_router_logits=True).aux_loss
    expected.backward()
    gradients = {
        key: parameter.grad.clone() for key, parameter in model.named_parameters() if parameter.grad is not None
    }
    assert any(gradient.any() for gradient in gradients.values())
    model.zero_grad(set_to_none=True)
    if checkpointing:
        enable_gradient_checkpointing(model)

    router = router_loss(model, None)
    policy = CompletionLogps(sharing(model) if shares else model, shares=shares, router_loss=router)
    tokens = TokenLogps(*policy(batch))
    assert tokens.router_loss.item() == pytest.approx(expected.item(), rel=1e-6)
    tokens.router_loss.backward()
    for key, parameter in model.named_parameters():
        if key in gradients:
            torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-5, atol=1e-7, msg=key)


def test_a_dummy_row_has_a_finite_loss() -> None:
    model = MODELS["mixtral"]()
    policy = CompletionLogps(sharing(model), shares=True, router_loss=router_loss(model, None))
    assert TokenLogps(*policy(packed([]))).router_loss.isfinite()


def test_the_coefficient_is_from_the_option_or_from_the_config() -> None:
    model = MODELS["mixtral"]()
    from_config, from_option = router_loss(model, None), router_loss(model, 0.5)
    assert from_config is not None
    assert from_config.coefficient == 0.02
    assert from_option is not None
    assert from_option.coefficient == 0.5
    assert router_loss(model, 0.0) is None


def test_dense_models_have_no_router_loss() -> None:
    model = LlamaForCausalLM(LlamaConfig(**SHAPE))
    assert router_loss(model, None) is None
    with pytest.raises(ModelError, match=r"router_aux_loss_coef=0\.1 .*llama model does not"):
        router_loss(model, 0.1)
