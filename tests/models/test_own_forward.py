"""What a model computes around its output embedding, compared with the full logits of its own forward."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    BertConfig,
    BertLMHeadModel,
    FalconH1Config,
    FalconH1ForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    MiniCPM3Config,
    MiniCPM3ForCausalLM,
    ModernBertDecoderConfig,
    ModernBertDecoderForCausalLM,
    RecurrentGemmaConfig,
    RecurrentGemmaForCausalLM,
)

from raydpo.errors import ModelError
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.head import TokenLogps, TokenStatsRequest
from tests.models.packed import SHAPE as TINY
from tests.models.packed import VOCABULARY, packed, pairs, plain_logits

SHAPE = {**TINY, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
USED = VOCABULARY - 5


class Changed(LlamaForCausalLM):
    """A Llama whose own code changes its logits in the way of `change`."""

    change: Any = None

    def forward(self, *arguments: Any, **named: Any) -> Any:
        output = super().forward(*arguments, **named)
        output.logits = self.change(output.logits)
        return output


def changed(change: Any) -> Any:
    """Return a tiny Llama that makes `change(logits)` of its logits."""
    model = Changed(LlamaConfig(**SHAPE))
    model.change = change
    return model


def masked(logits: Tensor) -> Tensor:
    """Return capped logits in which every seventh entry is ruled out."""
    logits = 2.0 * torch.tanh(0.7 * logits / 2.0)
    logits[..., ::7] = torch.finfo(logits.dtype).min
    return logits


MODELS: dict[str, Any] = {
    "dense, norm and bias": lambda: BertLMHeadModel(BertConfig(**SHAPE, is_decoder=True)),
    "dense with an embedding of another name": lambda: ModernBertDecoderForCausalLM(
        ModernBertDecoderConfig(**SHAPE, cls_token_id=1, sep_token_id=2, local_attention=4, decoder_bias=True)
    ),
    "multiplier": lambda: FalconH1ForCausalLM(
        FalconH1Config(
            **SHAPE, mamba_d_ssm=64, mamba_n_heads=4, mamba_d_head=16, mamba_chunk_size=8, lm_head_multiplier=0.04
        )
    ),
    "divisor": lambda: MiniCPM3ForCausalLM(
        MiniCPM3Config(
            **SHAPE | {"num_key_value_heads": 4},
            q_lora_rank=16,
            kv_lora_rank=16,
            qk_rope_head_dim=8,
            qk_nope_head_dim=16,
            v_head_dim=8,
            dim_model_base=8,
        )
    ),
    "cap": lambda: RecurrentGemmaForCausalLM(
        RecurrentGemmaConfig(
            **SHAPE | {"num_key_value_heads": 1},
            lru_width=32,
            block_types=["recurrent", "attention"],
            attention_window_size=4,
            logits_soft_cap=1.5,
        )
    ),
    "padded vocabulary": lambda: changed(lambda logits: logits[..., :USED]),
    "mask and cap": lambda: changed(masked),
}


def randomised(model: Any) -> Any:
    """Give a model weights with which its logits spread over some nats, and return it."""
    torch.manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not name.endswith(("A_log", "dt_bias", ".D", "recurrent_param")):
                parameter.add_(0.15 * torch.randn_like(parameter))
    return model.eval()


@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_values_and_gradients_are_those_of_the_models_own_logits(name: str, frozen: bool) -> None:
    model = randomised(MODELS[name]())
    head = model.get_output_embeddings()
    if frozen:
        head.weight = torch.nn.Parameter(head.weight.detach().clone())  # not tied to the input embedding
    members = pairs()
    if name == "padded vocabulary":
        for pair in members:
            for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids):
                ids %= USED
    batch = packed(members)
    logits, targets = plain_logits(model, members, batch)
    kept = logits[0] > -1e4
    expected = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    counted = kept[targets]  # a token that the model rules out has no finite log-prob to compare
    weights = torch.randn(len(expected)) * counted
    head.requires_grad_(not frozen)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    gradients = torch.autograd.grad((expected * weights)[counted].sum(), trained, allow_unused=True)

    policy = CompletionLogps(model, shares=False, chunk_tokens=5)
    tokens = TokenLogps(*policy(batch, TokenStatsRequest(statistics=True))).pick(torch.from_numpy(batch.target_index))
    found = torch.autograd.grad((tokens.logps * weights)[counted].sum(), trained, allow_unused=True)

    torch.testing.assert_close(tokens.logps[counted], expected[counted], rtol=1e-5, atol=1e-5)
    assert any(gradient is not None and gradient.abs().max() > 0.1 for gradient in gradients)
    for gradient, right in zip(found, gradients, strict=True):
        if right is not None and gradient is not None:
            assert (gradient - right).norm() <= 1e-4 * right.norm() + 1e-6
        else:
            assert all(other is None or not other.any() for other in (gradient, right))
    torch.testing.assert_close(tokens.mean_logit, logits[:, kept].mean(-1), rtol=1e-4, atol=1e-5)
    entropy = torch.distributions.Categorical(logits=logits[:, kept]).entropy()
    torch.testing.assert_close(tokens.entropy, entropy, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda logits: logits + 0.5, "adds 0.5 to its logits"),
        (lambda logits: logits - logits.mean(-1, keepdim=True), "to its logits after the output embedding"),
        (lambda logits: torch.where(logits > 0, logits, 0.1 * logits), "more than a factor"),
        (lambda logits: torch.cat([logits, logits], dim=-1), "makes logits of shape"),
    ],
)
def test_logits_that_cannot_be_computed_here_are_refused(change: Any, reason: str) -> None:
    with pytest.raises(ModelError, match=reason):
        CompletionLogps(changed(change), shares=False)(packed(pairs()))


def test_a_head_with_logits_of_several_tokens_is_refused() -> None:
    class Twice(LlamaForCausalLM):
        def forward(self, *arguments: Any, **named: Any) -> Any:
            output = super().forward(*arguments, **named)
            self.lm_head(self.model(*arguments, **named).last_hidden_state)
            return output

    with pytest.raises(ModelError, match="calls its output embedding 2 times"):
        CompletionLogps(Twice(LlamaConfig(**SHAPE)), shares=False)(packed(pairs()))
