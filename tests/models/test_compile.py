"""Compiled layers compute the same values and are not compiled again for each row."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from raydpo.batching.micro_batch import MicroBatch
from raydpo.blocks.schema import TokenizedPair
from raydpo.errors import ModelError
from raydpo.models.compile import compile_layers
from raydpo.models.completion_logps import CompletionLogps
from tests.models.packed import VOCABULARY, packed, pairs, sharing


def rows() -> list[MicroBatch]:
    """Return rows of two lengths whose segments are all different."""
    draw = np.random.default_rng(1)

    def pair(name: str, *counts: int) -> TokenizedPair:
        return TokenizedPair(name, *(draw.integers(1, VOCABULARY, count) for count in counts))

    members = [[pair("a", 4, 5, 6)], [pair("b", 9, 2, 1), pair("c", 1, 1, 1)], [pair("d", 3, 3, 3)], pairs()]
    return [packed(row, multiple=32) for row in members]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_compiled_layers_give_the_same_values_and_gradients_from_few_graphs() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=16, intermediate_size=16, num_hidden_layers=2, num_attention_heads=2
    )
    model = sharing(LlamaForCausalLM(config))
    policy = CompletionLogps(model, shares=True)
    batches = rows()
    expected = [policy(batch)[0] for batch in batches]
    torch.cat(expected).sum().backward()
    gradients = {name: parameter.grad.clone() for name, parameter in policy.named_parameters()}
    policy.zero_grad()

    compile_layers(model, bounded=True)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    found = [policy(batch)[0] for batch in batches[:1]]
    first = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert first > 0, "nothing was compiled"
    found += [policy(batch)[0] for batch in batches[1:]]
    assert len({len(batch.input_ids) for batch in batches}) == 2
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2 * first
    torch.cat(found).sum().backward()
    torch.testing.assert_close(torch.cat(found), torch.cat(expected), rtol=1e-5, atol=1e-6)
    for name, parameter in policy.named_parameters():
        assert (parameter.grad - gradients[name]).norm() <= 1e-5 * gradients[name].norm(), name


def test_a_model_without_layers_is_an_error() -> None:
    with pytest.raises(ModelError, match="Linear has no layers that torch_compile could compile separately"):
        compile_layers(torch.nn.Linear(2, 2), bounded=True)
