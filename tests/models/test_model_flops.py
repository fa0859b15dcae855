"""FLOPs of real architectures, compared with their matrices and with the counts of torch; and the table of devices."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    DeepseekV3Config,
    Gemma3TextConfig,
    GPT2Config,
    LlamaConfig,
    LlamaModel,
    MistralConfig,
    MixtralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3Config,
)

from raydpo.batching.flops import FlopsModel
from raydpo.models.model_flops import PEAK_FLOPS, flops_model, peak_flops

LLAMA = {
    "hidden_size": 8,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 11,
}
# Queries and output, keys and values of one head of 4, three feed-forward matrices, two norms; one final norm.
LLAMA_LAYER = 2 * 8 * 8 + 2 * 8 * 4 + 3 * 8 * 16 + 2 * 8
LLAMA_BODY = 2 * LLAMA_LAYER + 8
FULL = ((4.0 * 8 * 2, None),)  # 4 x heads x head size x layers


def test_llama_is_the_sum_of_its_matrices() -> None:
    assert flops_model(LlamaConfig(**LLAMA)) == FlopsModel(2 * LLAMA_BODY, 2 * 8 * 11, FULL)
    assert flops_model(LlamaConfig(**LLAMA, tie_word_embeddings=True)) == FlopsModel(2 * LLAMA_BODY, 2 * 8 * 11, FULL)


def test_queries_may_be_wider_than_the_hidden_size() -> None:
    layer = (
        2 * 8 * (2 * 32) + 2 * 8 * 32 + 3 * 8 * 16 + 2 * 8 + 2 * 32
    )  # heads of size 32; one norm each for queries and keys
    flops = flops_model(Qwen3Config(**LLAMA, head_dim=32))
    assert flops == FlopsModel(2 * (2 * layer + 8), 2 * 8 * 11, ((4.0 * 2 * 32 * 2, None),))


def test_position_embeddings_of_gpt2_do_not_count() -> None:
    config = GPT2Config(n_embd=8, n_layer=2, n_head=2, vocab_size=11, n_positions=32)
    body = 2 * (12 * 8 * 8 + 13 * 8) + 2 * 8  # a layer's matrices, its biases and norms; one final norm
    assert flops_model(config) == FlopsModel(2 * body, 2 * 8 * 11, FULL)


def test_a_mixture_of_experts_counts_the_active_experts() -> None:
    config = MixtralConfig(**LLAMA, num_local_experts=4, num_experts_per_tok=3)
    layer = 2 * 8 * 8 + 2 * 8 * 4 + 4 * 8 + 3 * (3 * 8 * 16) + 2 * 8  # the router scores all four, three are used
    assert flops_model(config).token == 2 * (2 * layer + 8)


def test_a_shared_expert_counts_for_all_tokens() -> None:
    sizes = {
        "hidden_size": 8,
        "intermediate_size": 16,
        "moe_intermediate_size": 4,
        "num_hidden_layers": 1,
        "first_k_dense_replace": 0,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "n_routed_experts": 8,
        "num_experts_per_tok": 2,
        "n_shared_experts": 1,
        "n_group": 1,
        "topk_group": 1,
        "q_lora_rank": 6,
        "kv_lora_rank": 5,
        "qk_nope_head_dim": 3,
        "qk_rope_head_dim": 2,
        "v_head_dim": 4,
        "vocab_size": 11,
    }
    queries = 8 * 6 + 6 + 6 * 2 * (3 + 2)
    keys_and_values = 8 * (5 + 2) + 5 + 5 * 2 * (3 + 4)
    attention = queries + keys_and_values + 2 * 4 * 8
    experts = 8 * 8 + (2 + 1) * 3 * 8 * 4  # the router, two of the eight experts, the shared one
    flops = flops_model(DeepseekV3Config(**sizes))
    assert flops.token == 2 * (attention + experts + 2 * 8 + 8)
    assert flops.attention == ((2.0 * 2 * ((3 + 2) + 4), None),)


def test_windows_are_those_of_the_layers() -> None:
    assert flops_model(MistralConfig(**LLAMA, sliding_window=5)).attention == ((4.0 * 8 * 2, 5),)
    assert flops_model(MistralConfig(**LLAMA, sliding_window=None)).attention == FULL
    assert flops_model(Qwen2Config(**LLAMA, sliding_window=5, use_sliding_window=False)).attention == FULL
    kinds = ["sliding_attention", "full_attention", "sliding_attention"]
    sizes = LLAMA | {"num_hidden_layers": 3, "head_dim": 4, "layer_types": kinds, "sliding_window": 5}
    assert dict((window, flops) for flops, window in flops_model(Gemma3TextConfig(**sizes)).attention) == {
        5: 4.0 * 8 * 2,
        None: 4.0 * 8,
    }


def test_an_architecture_outside_transformers_counts_as_a_usual_decoder() -> None:
    class OwnConfig(PreTrainedConfig):
        model_type = "of_its_own"
        hidden_size = 8
        num_hidden_layers = 2
        num_attention_heads = 2
        vocab_size = 11

    assert flops_model(OwnConfig()) == FlopsModel(2 * 12 * 2 * 8 * 8, 2 * 8 * 11, FULL)


def test_a_config_is_not_changed() -> None:
    config = LlamaConfig(**LLAMA, attn_implementation="flash_attention_2")
    flops_model(config)
    assert config._attn_implementation == "flash_attention_2"


@pytest.mark.parametrize("frozen", [False, True])
def test_forward_and_backward_match_the_counts_of_torch(frozen: bool) -> None:
    config = LlamaConfig(**LLAMA | {"hidden_size": 128, "intermediate_size": 256}, attn_implementation="eager")
    model = LlamaModel(config)
    for weight in model.layers.parameters():
        weight.requires_grad_(not frozen)
    tokens = 24
    with FlopCounterMode(display=False) as forward:
        hidden = model(torch.arange(tokens)[None] % 11, use_cache=False).last_hidden_state
    with FlopCounterMode(display=False) as backward:
        hidden.sum().backward()
    flops = flops_model(config)
    square = flops.attention[0][0] * tokens**2  # torch multiplies the whole square, and the mask hides half
    assert forward.get_total_flops() == pytest.approx(flops.token * tokens + square, rel=0.005)
    update_flops = flops.update(frozen=frozen)
    expected = update_flops.token * tokens + 3 * square
    assert forward.get_total_flops() + backward.get_total_flops() == pytest.approx(expected, rel=0.005)


@pytest.mark.parametrize(
    ("name", "teraflops"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA H20", 148),
        ("NVIDIA GH200 480GB", 989),
        ("NVIDIA B200", 2250),
        ("NVIDIA GB200", 2500),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A10", 125),
        ("NVIDIA A10G", 70),
        ("NVIDIA L4", 121),
        ("NVIDIA L40", 181),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165.2),
        ("NVIDIA GeForce RTX 3090", 71),
        ("Tesla V100-SXM2-16GB", 125),
        ("Tesla V100-PCIE-32GB", 112),
        ("Tesla T4", 65),
        ("AMD Instinct MI300X", 1307),
        ("AMD Instinct MI250X", 191.5),
    ],
)
def test_a_device_is_recognised_by_its_name(name: str, teraflops: float) -> None:
    assert peak_flops(name) == teraflops * 1e12


@pytest.mark.parametrize(
    "name",
    [
        "NVIDIA RTX A1000",
        "NVIDIA T400 4GB",
        "NVIDIA A100-SXM4-40GB MIG 1g.5gb",
        "NVIDIA GeForce RTX 4090 Laptop GPU",
        "cpu",
    ],
)
def test_a_device_that_is_not_in_the_table_has_no_peak(name: str) -> None:
    assert peak_flops(name) is None


def test_every_entry_of_the_table_is_found() -> None:
    assert {entry: peak_flops(f"NVIDIA {entry}") for entry in PEAK_FLOPS} == PEAK_FLOPS
