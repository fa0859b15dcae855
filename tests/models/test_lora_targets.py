"""Which layers get a LoRA adapter: only those through which a forward goes, whatever the architecture."""

import logging
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText

from raydpo.config import AdapterConfig
from raydpo.errors import ModelError
from raydpo.models.adapters import add_lora
from raydpo.models.lora_targets import default_lora_targets

IDS = torch.tensor([[5, 9, 42, 17, 50, 3, 8], [11, 30, 2, 24, 7, 40, 1]])
TEXT: dict[str, Any] = {
    "vocab_size": 53,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MAMBA: dict[str, Any] = {"state_size": 8, "conv_kernel": 4}
MIXER: dict[str, Any] = {"mamba_d_state": 8, "mamba_n_heads": 4, "mamba_d_head": 16, "mamba_n_groups": 1}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 4, "moe_intermediate_size": 16}
PROJECTIONS = {"q_proj", "k_proj", "v_proj", "o_proj"}
MLP = {"gate_proj", "up_proj", "down_proj"}
# Last parts of the names of the layers that have an adapter, of which those of attention and MLP are the usual ones.
FAMILIES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "mamba": ({"hidden_size": 32, "vocab_size": 53, "num_hidden_layers": 2, **MAMBA, "time_step_rank": 4}, {"in_proj"}),
    "falcon_mamba": (
        {"hidden_size": 32, "vocab_size": 53, "num_hidden_layers": 2, **MAMBA, "time_step_rank": 4},
        {"in_proj"},
    ),
    "mamba2": (
        {"hidden_size": 32, "vocab_size": 53, "num_hidden_layers": 2, **MAMBA, "num_heads": 4, "head_dim": 16,
         "n_groups": 1, "chunk_size": 8},
        {"in_proj"},
    ),
    "jamba": (
        {"attn_layer_period": 2, "attn_layer_offset": 1, "expert_layer_period": 2, "expert_layer_offset": 1,
         "num_experts": 4, "num_experts_per_tok": 4, "use_mamba_kernels": False, "mamba_d_state": 8,
         "mamba_dt_rank": 4},
        # The mixer calls all of its layers except dt_proj, whose weight it multiplies by itself.
        {*PROJECTIONS, *MLP, "in_proj", "x_proj", "out_proj"},
    ),
    "bamba": ({"attn_layer_indices": [1], **MIXER}, {*PROJECTIONS, *MLP, "in_proj"}),
    "falcon_h1": ({**MIXER, "mamba_d_ssm": 64}, {*PROJECTIONS, *MLP, "in_proj"}),
    "zamba2": (
        {"layers_block_type": ["mamba", "hybrid"], "num_mem_blocks": 1, "n_mamba_heads": 4, "mamba_headdim": 16,
         "mamba_ngroups": 1, "mamba_d_state": 8, "use_shared_attention_adapter": False, "num_key_value_heads": 4},
        {*PROJECTIONS, "gate_up_proj", "down_proj", "in_proj", "linear", "gate_up_proj_adapter_list.0.0",
         "gate_up_proj_adapter_list.0.1"},
    ),
    "qwen3_next": (
        {"layer_types": ["linear_attention", "full_attention"], **EXPERTS, "shared_expert_intermediate_size": 16,
         "linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8},
        {*PROJECTIONS, *MLP, "in_proj_qkvz", "in_proj_ba", "out_proj"},
    ),
    "gpt2": ({"n_embd": 32, "n_layer": 2, "n_head": 4, "vocab_size": 53}, {"c_attn", "c_proj", "c_fc"}),
}  # fmt: skip


def build(name: str, **options: Any) -> Any:
    """Return a tiny model with random weights that are not small, so that no gradient vanishes."""
    given = FAMILIES[name][0] if name in FAMILIES else {}
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(name, **{**TEXT, **given, **options}))
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            if parameter.dim() > 1 and "A_log" not in key:
                parameter.normal_(std=0.1)
    return model


def dead_adapters(adapted: Any) -> set[str]:
    """Return the last part of the name of each module whose adapter gets no gradient from a forward."""
    for key, parameter in adapted.named_parameters():
        if "lora_B" in key:
            torch.nn.init.normal_(parameter)
    logits = adapted.train()(input_ids=IDS, use_cache=False).logits
    (logits * torch.randn_like(logits)).sum().backward()
    trained = {key: parameter for key, parameter in adapted.named_parameters() if parameter.requires_grad}
    assert trained, "there must be adapters"
    return {
        key.partition(".lora_")[0].rpartition(".")[2]
        for key, parameter in trained.items()
        if parameter.grad is None or not parameter.grad.any()
    }


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_each_adapter_is_on_the_path_of_the_forward(name: str) -> None:
    model = build(name)
    wanted = FAMILIES[name][1]
    paths = default_lora_targets(model)
    assert {next((part for part in wanted if path.endswith(f".{part}")), path) for path in paths} == wanted
    assert dead_adapters(add_lora(model, AdapterConfig(lora_dropout=0.0))) == set()


def test_peft_alone_adapts_a_layer_that_is_never_called() -> None:
    """Show the fault on PEFT's own default, so that the test above is known to be able to fail."""
    config = LoraConfig(target_modules="all-linear")
    assert dead_adapters(get_peft_model(build("jamba"), config)) == {"dt_proj"}


@pytest.mark.parametrize(
    ("name", "options", "routers"),
    [
        ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 4}, "gate"),
        ("qwen2_moe", {**EXPERTS, "shared_expert_intermediate_size": 16}, "gate shared_expert_gate"),
        ("qwen3_moe", EXPERTS, "gate"),
        ("phimoe", {"num_local_experts": 4, "num_experts_per_tok": 2}, "router"),
        ("llama4_text", {"num_local_experts": 4, "intermediate_size_mlp": 48, "layer_types": ["full_attention"] * 2,
                         "no_rope_layers": [1, 1]}, "router"),
    ],
)  # fmt: skip
def test_routers_have_no_adapter_and_experts_have_one_where_peft_can(
    name: str, options: dict[str, Any], routers: str
) -> None:
    adapted = add_lora(build(name, **options), AdapterConfig(lora_dropout=0.0))
    names = {key.partition(".lora_")[0] for key, value in adapted.named_parameters() if value.requires_grad}
    assert not {key for key in names if key.rpartition(".")[2] in routers.split()}
    assert any("self_attn.q_proj" in key for key in names)
    assert any(".experts" in key for key in names) is (name in ("mixtral", "qwen3_moe"))
    assert dead_adapters(adapted) == set()


@pytest.mark.parametrize(
    ("name", "target", "message"),
    [
        ("mamba", "x_proj", r"lora_target_modules=x_proj is backbone\.layers\.0\.mixer\.x_proj, whose weight.*in_proj"),
        ("falcon_h1", "out_proj", r"lora_target_modules=out_proj is .*bypassing an adapter"),
        ("jamba", "dt_proj", r"lora_target_modules=dt_proj is .*bypassing an adapter"),
    ],
)
def test_a_named_layer_that_would_bypass_its_adapter_is_refused(name: str, target: str, message: str) -> None:
    with pytest.raises(ModelError, match=message):
        add_lora(build(name), AdapterConfig(lora_target_modules=(target,)))


BART: dict[str, Any] = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 48,
                        "is_decoder": True, "is_encoder_decoder": False}  # fmt: skip
ZAMBA: dict[str, Any] = {"num_hidden_layers": 3, "layers_block_type": ["mamba", "hybrid", "hybrid"],
                         "mamba_d_state": 8, "attention_hidden_size": 64, "head_dim": 16}  # fmt: skip
LAGUNA: dict[str, Any] = {**EXPERTS, "shared_expert_intermediate_size": 16, "mlp_layer_types": ["dense", "sparse"],
                          "layer_types": ["full_attention"] * 2}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "options", "target", "left_out", "message"),
    [
        ("bart", BART, "encoder_attn.q_proj", "encoder_attn", "no gradient reaches"),
        ("laguna", LAGUNA, "shared_experts.up_proj", "shared_experts", "peft loses on loading"),
        ("zamba", ZAMBA, "q_proj", "shared_transf", "other layers have too"),
    ],
)
def test_layers_whose_adapter_is_never_trained_or_lost_or_wrongly_merged_have_none(
    name: str, options: dict[str, Any], target: str, left_out: str, message: str
) -> None:
    paths = default_lora_targets(build(name, **options))
    assert paths
    assert not any(left_out in path for path in paths)
    with pytest.raises(ModelError, match=rf"lora_target_modules={target} is .*{left_out}.*{message}"):
        add_lora(build(name, **options), AdapterConfig(lora_target_modules=(target,)))


VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
          "image_size": 28, "patch_size": 14}  # fmt: skip


def llava() -> Any:
    config = AutoConfig.for_model(
        "llava",
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**VISION, "model_type": "clip_vision_model", "projection_dim": 32},
    )
    return AutoModelForImageTextToText.from_config(config)


def test_a_vision_tower_has_no_adapter(caplog: pytest.LogCaptureFixture) -> None:
    paths = default_lora_targets(llava())
    assert len(paths) == 2 * 7
    assert all(".language_model." in path for path in paths)
    with caplog.at_level(logging.WARNING):  # the tower has layers of these names too
        adapted = add_lora(llava(), AdapterConfig(lora_dropout=0.0, lora_target_modules=("q_proj", "v_proj")))
    names = {key.partition(".lora_")[0] for key, value in adapted.named_parameters() if value.requires_grad}
    assert len(names) == 2 * 2
    assert all(".language_model." in key for key in names)
    assert "4 modules get no adapter, first model.vision_tower" in caplog.text
    for target in ("fc1", "multi_modal_projector.linear_1"):
        with pytest.raises(ModelError, match=rf"lora_target_modules={target} is .*outside the language model.*q_proj"):
            add_lora(llava(), AdapterConfig(lora_target_modules=(target,)))
