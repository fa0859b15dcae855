"""Log-probs of completion tokens, compared with a plain log-softmax of the full logits of transformers."""

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PhiConfig,
    PhiForCausalLM,
)

from raydpo.models.completion_logps import CompletionLogps, completion_sums
from raydpo.models.head import TokenLogps, TokenStatsRequest, default_chunk_tokens
from tests.models.packed import SHAPE as TINY
from tests.models.packed import VOCABULARY, packed, pairs, plain_logits, sequences, sharing

SHAPE = {**TINY, "pad_token_id": 0}
MODELS: dict[str, Any] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE)),
    "llama tied": lambda: LlamaForCausalLM(LlamaConfig(**SHAPE, tie_word_embeddings=True)),
    "gemma2 softcap": lambda: Gemma2ForCausalLM(
        Gemma2Config(**SHAPE, head_dim=8, final_logit_softcapping=2.0, attn_implementation="eager")
    ),
    "cohere scale": lambda: CohereForCausalLM(CohereConfig(**SHAPE, logit_scale=0.25)),
    "granite scaling": lambda: GraniteForCausalLM(GraniteConfig(**SHAPE, logits_scaling=4.0)),
    "phi bias": lambda: PhiForCausalLM(PhiConfig(**SHAPE)),
    "gpt2 positions": lambda: GPT2LMHeadModel(
        GPT2Config(vocab_size=VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    ),
}


@pytest.mark.parametrize("chunk_tokens", [5, 1000])
@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("name", sorted(MODELS))
def test_values_and_gradients_are_those_of_full_logits(name: str, shares: bool, chunk_tokens: int) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    batch = packed(pairs(), multiple=16)
    logits, targets = plain_logits(model, pairs(), batch)
    expected = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    weights = torch.randn(len(expected))
    (expected * weights).sum().backward()
    gradients = {key: parameter.grad.clone() for key, parameter in model.named_parameters()}
    model.zero_grad()

    policy = CompletionLogps(sharing(model) if shares else model, shares=shares, chunk_tokens=chunk_tokens)
    request = TokenStatsRequest(statistics=True, collision=True)
    tokens = TokenLogps(*policy(batch, request)).pick(torch.from_numpy(batch.target_index))
    (tokens.logps * weights).sum().backward()

    torch.testing.assert_close(tokens.logps, expected, rtol=1e-5, atol=1e-6)
    for key, parameter in model.named_parameters():
        assert (parameter.grad - gradients[key]).norm() <= 1e-5 * gradients[key].norm(), key
    entropy = torch.distributions.Categorical(logits=logits).entropy()
    torch.testing.assert_close(tokens.entropy, entropy, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(tokens.mean_logit, logits.mean(-1), rtol=1e-5, atol=1e-6)
    squares = logits.softmax(-1).square().sum(-1).log()
    torch.testing.assert_close(tokens.collision, squares, rtol=1e-5, atol=1e-5)
    assert tokens.correct.tolist() == (logits.argmax(-1) == targets).float().tolist()


@pytest.mark.parametrize("chunk_tokens", [5, 1000])
@pytest.mark.parametrize("name", ["llama", "gemma2 softcap", "cohere scale", "phi bias"])
def test_gradients_below_a_frozen_head_are_those_of_full_logits(name: str, chunk_tokens: int) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    head = model.get_output_embeddings()
    head.weight = torch.nn.Parameter(head.weight.detach().clone())  # not tied to the input embedding
    batch = packed(pairs())
    logits, targets = plain_logits(model, pairs(), batch)
    expected = logits.log_softmax(dim=-1).gather(1, targets[:, None])[:, 0]
    weights = torch.randn(len(expected))
    trainable = [parameter for key, parameter in model.named_parameters() if not key.startswith("lm_head")]
    gradients = torch.autograd.grad((expected * weights).sum(), trainable)

    head.requires_grad_(False)
    policy = CompletionLogps(sharing(model), shares=True, chunk_tokens=chunk_tokens)
    logps = policy(batch)[0][torch.from_numpy(batch.target_index)]
    torch.testing.assert_close(logps, expected, rtol=1e-5, atol=1e-6)
    found = torch.autograd.grad((logps * weights).sum(), trainable)
    for gradient, expected_gradient in zip(found, gradients, strict=True):
        assert (gradient - expected_gradient).norm() <= 1e-5 * expected_gradient.norm()


@pytest.mark.parametrize("shares", [True, False])
def test_prompts_have_log_probs_if_they_are_targets(shares: bool) -> None:
    torch.manual_seed(0)
    model = MODELS["llama"]().eval()
    batch = packed(pairs(), with_prompts=True)
    expected = []
    for ids, prompt in sequences(pairs(), batch)[: batch.pairs]:
        logps = model(input_ids=ids[None]).logits[0].log_softmax(dim=-1)
        expected.append(logps[: prompt - 1].gather(1, ids[1:prompt, None])[:, 0].sum())
    policy = CompletionLogps(sharing(model) if shares else model, shares=shares)
    logps = policy(batch)[0][torch.from_numpy(batch.prompt_target_index)]
    found = completion_sums(logps, torch.from_numpy(batch.prompt_pair_index), batch.pairs)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_a_second_backward_gives_the_same_gradients() -> None:
    """Check a second backward: the first one uses up what the forward kept for it."""
    policy = CompletionLogps(sharing(MODELS["llama"]()), shares=True)
    total = policy(packed(pairs()))[0].sum()
    gradients = [torch.autograd.grad(total, list(policy.parameters()), retain_graph=True) for _ in range(2)]
    for first, second in zip(*gradients, strict=True):
        torch.testing.assert_close(first, second, rtol=1e-5, atol=1e-7)


class LargestLogits(TorchDispatchMode):
    """Records the largest number of rows of vocabulary size that any operation returned."""

    rows = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.shape[1:] == (VOCABULARY,) and result.is_contiguous():
            self.rows = max(self.rows, len(result))  # excludes the transposed weight, whose rows are not tokens
        return result


def test_at_most_one_chunk_of_logits_exists() -> None:
    policy = CompletionLogps(sharing(MODELS["llama"]()), shares=True, chunk_tokens=6)
    policy(packed(pairs()))  # the first forward also looks at what the model does to its logits
    with LargestLogits() as largest:
        policy(packed(pairs()), TokenStatsRequest(statistics=True, collision=True))[0].sum().backward()
    assert largest.rows == 6


def test_the_chunk_size_depends_on_the_memory() -> None:
    assert default_chunk_tokens(torch.device("cpu"), 32_000) == 256 * 2**20 // (4 * 32_000)
    assert default_chunk_tokens(torch.device("cpu"), 10**12) == 1


@pytest.mark.parametrize("shares", [True, False])
def test_a_batch_without_tokens_still_reaches_every_parameter(shares: bool) -> None:
    policy = CompletionLogps(sharing(MODELS["llama"]()) if shares else MODELS["llama"](), shares=shares)
    logps = policy(packed([]))[0]
    assert logps.shape == (0,)
    logps.sum().backward()
    for name, parameter in policy.named_parameters():
        assert parameter.grad is not None, f"{name} has no gradient: ranks would disagree on collectives"
        assert not parameter.grad.any()


def test_parameters_keep_their_names() -> None:
    model = MODELS["llama"]()
    names = list(model.state_dict())
    CompletionLogps(model, shares=False)
    assert sorted(model.state_dict()) == sorted(names)


def test_values_are_summed_by_completion() -> None:
    values, completion = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([0, 0, 2, 2])
    assert completion_sums(values, completion, 4).tolist() == [3.0, 0.0, 12.0, 0.0]
