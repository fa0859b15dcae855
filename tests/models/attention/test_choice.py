"""Which models share prompts, by their config, and that packed rows give them the hidden states of plain rows."""

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

from raydpo.batching.micro_batch import Layout
from raydpo.errors import ModelError
from raydpo.models.attention.choice import (
    IMPLEMENTATIONS,
    SHARING_MODEL_TYPES,
    AttentionChoice,
    choose,
    sharing_obstacle,
)
from raydpo.models.attention.kernels import register_attention
from raydpo.models.attention.segments import Segments
from tests.models.packed import SHAPE as TINY

CPU = torch.device("cpu")
SHAPE = {
    **TINY,
    "head_dim": 8,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = {"sliding_window": 4}
MIXED = {**WINDOW, "layer_types": ["sliding_attention", "full_attention"]}
EXPERTS = {"num_local_experts": 4, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = {**EXPERTS, "n_routed_experts": 4, "n_shared_experts": 1, "n_group": 1, "topk_group": 1}
LATENT = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 8, "qk_nope_head_dim": 16, "v_head_dim": 8}
DEEPSEEK = {**ROUTED, **LATENT, "first_k_dense_replace": 1, "num_key_value_heads": 4, "head_dim": 8}
GEMMA3 = {**MIXED, "query_pre_attn_scalar": 8}
VISION = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
}
# Options of a model family, in addition to the common shape, that keep it small and enable its special features.
FAMILY: dict[str, dict[str, Any]] = {
    "cohere2": MIXED,
    "deepseek_v2": {**DEEPSEEK, "topk_method": "greedy"},
    "deepseek_v3": DEEPSEEK,
    "dots1": {**ROUTED, **MIXED, "first_k_dense_replace": 1},
    "ernie4_5_moe": {"moe_num_experts": 4, "moe_k": 2, "moe_num_shared_experts": 1, "moe_intermediate_size": 16},
    "exaone4": MIXED,
    "gemma2": {**MIXED, "attn_logit_softcapping": 3.0, "query_pre_attn_scalar": 8},
    "gemma3": {"text_config": {**SHAPE, **GEMMA3}, "vision_config": VISION, "mm_tokens_per_image": 1},
    "gemma3_text": GEMMA3,
    "glm4_moe": {**ROUTED, "first_k_dense_replace": 1},
    "gpt_oss": {**EXPERTS, **MIXED},
    "granitemoe": EXPERTS,
    "minimax_m2": EXPERTS,
    "ministral": {**WINDOW, "layer_types": ["sliding_attention"] * 2},
    "ministral3": WINDOW,
    "mistral": WINDOW,
    "mixtral": {**EXPERTS, **WINDOW},
    "olmo3": MIXED,
    "olmoe": EXPERTS,
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "phi3": WINDOW,
    "qwen2": {**MIXED, "use_sliding_window": True},
    "qwen2_moe": {**EXPERTS, "shared_expert_intermediate_size": 16},
    "qwen3": {**MIXED, "use_sliding_window": True},
    "qwen3_moe": {**EXPERTS, **WINDOW, "use_sliding_window": True},
    "smollm3": {**MIXED, "use_sliding_window": True},
    "starcoder2": WINDOW,
}
LAYOUT = Layout(
    prompts=((0, 9), (22, 27), (36, 40)),  # the last one pads the row
    completions=((9, 13, 0), (13, 19, 0), (19, 22, 0), (27, 34, 1), (34, 36, 1)),
)
POSITIONS = torch.tensor(
    [*range(9), *range(9, 13), *range(9, 15), *range(9, 12), *range(5), *range(5, 12), *range(5, 7), *[0] * 4]
)


def tiny_config(model_type: str, **overrides: Any) -> Any:
    """Return a config with few and small layers."""
    return AutoConfig.for_model(model_type, **{**SHAPE, **FAMILY.get(model_type, {}), **overrides})


def tiny_model(config: Any, implementation: str) -> Any:
    """Return a model with fixed weights per config, so large that each token's state depends on all that it sees."""
    register_attention()
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(copy.deepcopy(config), attn_implementation=implementation).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn_like(parameter) * 0.3 if parameter.dim() > 1 else torch.rand_like(parameter))
    return model


def sequences(row: Tensor) -> list[Tensor]:
    """Split a row [tokens, ...] into each prompt with each of its completions."""
    return [
        torch.cat([row[slice(*LAYOUT.prompts[prompt])], row[start:stop]]) for start, stop, prompt in LAYOUT.completions
    ]


def packed_states(model: Any, ids: Tensor) -> list[Tensor]:
    """Return the last hidden states of each sequence, from a forward of one packed row."""
    segments = Segments(LAYOUT, CPU)
    body = model.base_model(
        input_ids=ids[None], position_ids=POSITIONS[None], attention_mask=None, use_cache=False, segments=segments
    )
    return sequences(body.last_hidden_state[0])


def plain_states(model: Any, ids: Tensor) -> list[Tensor]:
    """Return the last hidden states of each sequence, from a forward of its own."""
    bodies = [
        model.base_model(input_ids=row[None], attention_mask=torch.ones_like(row[None]), use_cache=False)
        for row in sequences(ids)
    ]
    return [body.last_hidden_state[0] for body in bodies]


def some_ids() -> Tensor:
    return torch.randint(3, 61, (40,), generator=torch.Generator().manual_seed(1))


def distance(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("model_type", sorted(SHARING_MODEL_TYPES))
def test_packed_rows_give_the_states_of_plain_rows(model_type: str) -> None:
    config = tiny_config(model_type)
    assert sharing_obstacle(config) is None
    with torch.no_grad():
        found = packed_states(tiny_model(config, IMPLEMENTATIONS["sdpa"]), some_ids())
        expected = plain_states(tiny_model(config, "eager"), some_ids())
    for packed, plain in zip(found, expected, strict=True):
        assert distance(packed, plain) < 1e-5


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("model_type", ["llama", "mistral", "gemma2", "qwen3"])
def test_packed_rows_give_the_gradients_of_plain_rows(model_type: str, checkpointing: bool) -> None:
    draw = torch.Generator().manual_seed(2)
    directions = [torch.randn(len(row), SHAPE["hidden_size"], generator=draw) for row in sequences(POSITIONS)]

    def gradients(model: Any, states: list[Tensor]) -> dict[str, Tensor]:
        loss = sum((state * direction).sum() for state, direction in zip(states, directions, strict=True))
        assert isinstance(loss, Tensor)
        loss.backward()
        return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}

    config = tiny_config(model_type)
    plain, packed = tiny_model(config, "eager"), tiny_model(config, IMPLEMENTATIONS["sdpa"])
    if checkpointing:
        packed.train().activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    expected = gradients(plain, plain_states(plain, some_ids()))
    found = gradients(packed, packed_states(packed, some_ids()))
    assert found.keys() == expected.keys()
    assert all(distance(found[name], expected[name]) < 1e-5 for name in expected)


def test_the_attention_stays_outside_a_compiled_layer() -> None:
    config = tiny_config("llama")
    model = tiny_model(config, IMPLEMENTATIONS["sdpa"])
    with torch.no_grad():
        expected = packed_states(model, some_ids())
        for layer in model.base_model.layers:
            layer.compile(backend="eager")
        found = packed_states(model, some_ids())
    torch._dynamo.reset()
    for compiled, plain in zip(found, expected, strict=True):
        torch.testing.assert_close(compiled, plain)


UNSHARED = {
    "bamba": {},
    "bert": {},
    "bloom": {},
    "falcon": {},
    "falcon_mamba": {},
    "jamba": {},
    "lfm2": {},
    "llama4_text": {},
    "mamba": {},
    "mamba2": {},
    "minimax": {},
    "phimoe": {},
    "qwen3_next": {},
    "recurrent_gemma": {},
    # A window that is not passed to the attention function, layers of an unknown type, bidirectional attention.
    "qwen2_moe": {"num_hidden_layers": 2, "use_sliding_window": True, **MIXED},
    "qwen3": {"num_hidden_layers": 2, "layer_types": ["full_attention", "chunked_attention"]},
    "gemma3_text": {"use_bidirectional_attention": True},
    "smollm3": {"num_hidden_layers": 2, "use_sliding_window": False, **MIXED},
    # Custom code next to the weights, which may compute anything.
    "llama": {"auto_map": {"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"}},
}


@pytest.mark.parametrize("model_type", sorted(UNSHARED))
def test_other_models_take_padded_rows_and_their_own_attention(model_type: str) -> None:
    config = AutoConfig.for_model(model_type, **UNSHARED[model_type])
    choice = choose(config, attn_implementation=None, share_prompts=True, gpu=True, dtype="bfloat16")
    assert choice == AttentionChoice("plain", None, str(sharing_obstacle(config)))
    assert not choice.shares


def test_an_unknown_family_is_tried_on_request_unless_its_window_is_beyond_the_proof() -> None:
    config = AutoConfig.for_model("cwm", sliding_window=8192)
    options: dict[str, Any] = {"attn_implementation": None, "gpu": False, "dtype": "float32"}
    assert not choose(config, **options, share_prompts=True, max_length=1024).shares
    assert choose(config, **options, share_prompts="try", max_length=1024).shares
    long = choose(config, **options, share_prompts="try", max_length=16_384)
    assert (long.shares, "window of 8192 tokens" in long.reason) == (False, True)
    listed = AutoConfig.for_model("mistral", sliding_window=4096)
    assert choose(listed, **options, share_prompts="try", max_length=16_384).shares, "its window is tested"
    own_code = AutoConfig.for_model("llama", auto_map={"AutoModelForCausalLM": "modeling_own.OwnForCausalLM"})
    assert choose(own_code, **options, share_prompts="try").shares
    own_code.local_window = 512
    assert not choose(own_code, **options, share_prompts="try").shares
    closed = choose(AutoConfig.for_model("falcon"), **options, share_prompts="try")
    assert (closed.shares, "no attention function" in closed.reason) == (False, True)
    chunked = AutoConfig.for_model("qwen3", num_hidden_layers=1, layer_types=["chunked_attention"])
    assert not choose(chunked, **options, share_prompts="try").shares


@pytest.mark.parametrize(
    ("model_type", "requested", "gpu", "dtype", "backend"),
    [
        ("llama", None, False, "float32", "sdpa"),
        ("llama", None, False, "bfloat16", "sdpa"),
        ("llama", None, True, "float32", "sdpa"),
        ("llama", None, True, "float16", "varlen"),
        ("mistral", None, True, "bfloat16", "varlen"),
        ("gemma2", None, True, "bfloat16", "sdpa"),  # a soft cap
        ("gpt_oss", None, True, "bfloat16", "sdpa"),  # sinks
        ("deepseek_v3", None, True, "bfloat16", "sdpa"),  # keys and values of different sizes
        ("llama", "sdpa", True, "bfloat16", "sdpa"),
        ("llama", "varlen", True, "bfloat16", "varlen"),
        ("llama", "flash_attention_2", True, "bfloat16", "varlen"),
        ("llama", "flash_attention_3", True, "float16", "varlen"),
        ("gemma2", "flash_attention_2", True, "bfloat16", "sdpa"),
        ("gemma2", "flex_attention", True, "bfloat16", "flex_attention"),
        ("llama", "flex_attention", True, "float32", "flex_attention"),
        ("gpt_oss", "flex_attention", True, "bfloat16", "sdpa"),
    ],
)
def test_the_backend_for_packed_rows(
    model_type: str, requested: str | None, gpu: bool, dtype: str, backend: str
) -> None:
    choice = choose(tiny_config(model_type), attn_implementation=requested, share_prompts=True, gpu=gpu, dtype=dtype)
    assert (choice.backend, choice.implementation) == (backend, IMPLEMENTATIONS[backend])
    assert choice.shares
    assert choice.reason


@pytest.mark.parametrize("head_dim", [12, 264])
def test_head_sizes_that_flash_kernels_do_not_support_use_sdpa(head_dim: int) -> None:
    config = tiny_config("llama", head_dim=head_dim)
    choice = choose(config, attn_implementation=None, share_prompts=True, gpu=True, dtype="bfloat16")
    assert choice.backend == "sdpa"
    assert str(head_dim) in choice.reason


@pytest.mark.parametrize(
    ("requested", "share_prompts", "implementation"),
    [("eager", True, "eager"), ("sdpa", False, "sdpa"), (None, False, None), ("varlen", False, None)],
)
def test_the_plain_path_on_request(requested: str | None, share_prompts: bool, implementation: str | None) -> None:
    choice = choose(
        tiny_config("llama"), attn_implementation=requested, share_prompts=share_prompts, gpu=True, dtype="bfloat16"
    )
    assert (choice.backend, choice.implementation) == ("plain", implementation)
    assert ("share_prompts" in choice.reason) != share_prompts


@pytest.mark.parametrize(
    ("requested", "gpu", "dtype", "message"),
    [
        ("varlen", False, "bfloat16", "needs a GPU"),
        ("flash_attention_2", False, "bfloat16", "needs a GPU"),
        ("flash_attention_3", True, "float32", "not float32"),
        ("flex_attention", False, "float32", "no gradients on a CPU"),
    ],
)
def test_an_implementation_that_cannot_work_is_refused(requested: str, gpu: bool, dtype: str, message: str) -> None:
    with pytest.raises(ModelError, match=f"{requested}.*{message}.*leave it out, or set it to sdpa"):
        choose(tiny_config("llama"), attn_implementation=requested, share_prompts=True, gpu=gpu, dtype=dtype)
