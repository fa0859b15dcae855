"""The log-prob of a completion token, against transformers' own full logits and a plain log-softmax."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
)

from raydpo.models import logprobs
from raydpo.models.logprobs import CompletionLogps, TokenLogps, Wanted, completion_sums

SHAPE = {
    "vocab_size": 61,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "pad_token_id": 0,
}
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "gemma2 softcap": lambda: Gemma2ForCausalLM(Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0)),
    "cohere scale": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25)),
    "granite scaling": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=4.0)),
}
ROWS, WIDTH, PROMPT = 4, 16, 7


def plain_logps(model: Any, ids: Tensor) -> tuple[Tensor, Tensor]:
    """Log-probs of the tokens after the prompt, and the logits that predict them, from the whole model."""
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits.float()[:, PROMPT - 1 : -1]
    return torch.log_softmax(logits, dim=-1).gather(2, ids[:, PROMPT:, None]).reshape(-1), logits


@pytest.mark.parametrize("name", sorted(MODELS))
def test_values_and_gradients_are_those_of_full_logits(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "CHUNK_TOKENS", 5)  # several chunks, the last one short
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    ids = torch.randint(1, 61, (ROWS, WIDTH))
    weights = torch.randn(ROWS * (WIDTH - PROMPT))
    expected, logits = plain_logps(model, ids)
    (expected * weights).sum().backward()
    gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()

    predictors = torch.cat([torch.arange(PROMPT - 1, WIDTH - 1) + row * WIDTH for row in range(ROWS)])
    policy = CompletionLogps(model)
    targets = ids.reshape(-1)[predictors + 1]
    wanted = Wanted(statistics=True, collision=True)
    tokens = TokenLogps(*policy(ids, torch.ones_like(ids), predictors, targets, wanted))
    (tokens.logps * weights).sum().backward()

    torch.testing.assert_close(tokens.logps, expected, rtol=1e-5, atol=1e-6)
    for key, parameter in model.named_parameters():
        torch.testing.assert_close(parameter.grad, gradients[key], rtol=1e-4, atol=1e-6, msg=key)
    flat = logits.reshape(-1, 61)
    entropy = torch.distributions.Categorical(logits=flat).entropy()
    torch.testing.assert_close(tokens.entropy, entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.mean_logit, flat.mean(-1), rtol=1e-5, atol=1e-6)
    squares = flat.softmax(-1).square().sum(-1).log()
    torch.testing.assert_close(tokens.collision, squares, rtol=1e-5, atol=1e-5)
    assert tokens.correct.tolist() == (flat.argmax(-1) == ids[:, PROMPT:].reshape(-1)).float().tolist()


def test_a_batch_without_tokens_still_reaches_every_parameter() -> None:
    policy = CompletionLogps(MODELS["llama"]())
    none = torch.zeros(0, dtype=torch.int64)
    logps = policy(torch.ones(1, 8, dtype=torch.int64), torch.ones(1, 8, dtype=torch.int64), none, none)[0]
    assert logps.shape == (0,)
    logps.sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient: ranks would disagree on collectives"
        assert not parameter.grad.any()


def test_parameters_keep_their_names() -> None:
    model = MODELS["llama"]()
    names = list(model.state_dict())
    CompletionLogps(model)
    assert sorted(model.state_dict()) == sorted(names)


def test_sums_by_completion() -> None:
    values, completion = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 0, 2, 2])
    assert completion_sums(values, completion, 4).tolist() == [3.0, 0.0, 12.0, 0.0]
