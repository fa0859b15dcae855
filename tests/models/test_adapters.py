"""A LoRA adapter on a real model: what it changes, what it leaves unchanged, and what is refused."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, MixtralConfig, MixtralForCausalLM

from raydpo.config import AdapterConfig
from raydpo.errors import ModelError
from raydpo.models.adapters import add_lora, load_adapter
from raydpo.models.loading import enable_gradient_checkpointing
from raydpo.models.source import ModelSource, resolve_adapter

IDS = torch.tensor([[5, 9, 42, 17, 60, 3, 8]])
SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def llama(**options: Any) -> LlamaForCausalLM:
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE | options))


def trainable(model: torch.nn.Module) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}, {"use_dora": True}])
def test_an_untrained_adapter_changes_nothing(options: dict[str, Any]) -> None:
    model = llama()
    before = model(IDS).logits
    adapted = add_lora(model, AdapterConfig(lora_r=4, **options)).eval()
    torch.testing.assert_close(adapted(IDS).logits, before, rtol=1e-5, atol=1e-6)


def test_by_default_all_linear_layers_but_the_head_are_adapted() -> None:
    adapted = add_lora(llama(), AdapterConfig(lora_r=4))
    projections = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj"]
    projections += ["mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
    assert trainable(adapted) == {
        f"base_model.model.model.layers.{layer}.{projection}.lora_{side}.default.weight"
        for layer in range(2)
        for projection in projections
        for side in "AB"
    }


@pytest.mark.parametrize(("options", "scale"), [({}, 12 / 4), ({"use_rslora": True}, 12 / math.sqrt(4))])
def test_the_adapter_adds_the_scaled_product(options: dict[str, Any], scale: float) -> None:
    config = AdapterConfig(lora_r=4, lora_alpha=12, lora_target_modules=("q_proj",), **options)
    adapted = add_lora(llama(), config).eval()
    layer = adapted.get_base_model().model.layers[0].self_attn.q_proj
    a, b = layer.lora_A.default.weight, layer.lora_B.default.weight
    torch.nn.init.normal_(b)
    x = torch.randn(3, 16)
    torch.testing.assert_close(layer(x), x @ layer.base_layer.weight.T + scale * (x @ a.T @ b.T))


def test_the_adapter_has_the_dtype_of_the_model() -> None:
    adapted = add_lora(llama().to(torch.bfloat16), AdapterConfig(lora_r=4))
    assert {parameter.dtype for parameter in adapted.parameters()} == {torch.bfloat16}


def test_modules_to_save_are_trained_in_full() -> None:
    config = AdapterConfig(lora_target_modules=("q_proj",), lora_modules_to_save=("embed_tokens",))
    assert "base_model.model.model.embed_tokens.modules_to_save.default.weight" in trainable(add_lora(llama(), config))


@pytest.mark.parametrize(
    ("tied", "options"),
    [
        (False, {"lora_target_modules": ("q_proj", "lm_head")}),
        (False, {"lora_modules_to_save": ("lm_head",)}),
        (True, {"lora_target_modules": ("embed_tokens",)}),
        (True, {"lora_modules_to_save": ("embed_tokens",)}),
    ],
)
def test_adapting_the_head_or_a_weight_tied_to_it_is_refused(tied: bool, options: dict[str, Any]) -> None:
    with pytest.raises(ModelError, match=r"is the output embedding or shares its weight.*leave it out"):
        add_lora(llama(tie_word_embeddings=tied), AdapterConfig(**options))


@pytest.mark.parametrize("flag", ["lora_target_modules", "lora_modules_to_save"])
def test_an_unknown_module_is_refused_with_the_known_ones(flag: str) -> None:
    with pytest.raises(ModelError) as caught:
        add_lora(llama(), AdapterConfig(**{flag: ("query_key_value",)}))
    assert str(caught.value) == (
        f"{flag}=query_key_value matches no module of LlamaForCausalLM; "
        "its linear modules are down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
    )


def test_a_module_that_is_not_a_layer_is_refused() -> None:
    with pytest.raises(ModelError, match=r"a LoRA adapter cannot be added to mlp .*its linear modules are down_proj"):
        add_lora(llama(), AdapterConfig(lora_target_modules=("mlp",)))


def save_adapter(folder: Path, config: PeftConfig, **shape: Any) -> ModelSource:
    """Save an adapter of a Llama in a folder and return it as a source."""
    get_peft_model(llama(**shape), config).save_pretrained(str(folder))
    return resolve_adapter(str(folder))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_saved_adapter_is_loaded(dtype: torch.dtype, tmp_path: Path) -> None:
    config = LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    source = save_adapter(tmp_path, config)
    expected = PeftModel.from_pretrained(llama(), str(tmp_path))(IDS).logits
    assert not torch.allclose(expected, llama()(IDS).logits)
    for trained in (True, False):
        adapted = load_adapter(llama().to(dtype), source, trainable=trained)
        assert trainable(adapted) == {name for name, _ in adapted.named_parameters() if trained and "lora_" in name}
        assert {parameter.dtype for parameter in adapted.parameters()} == {dtype}
        torch.testing.assert_close(
            adapted(IDS).logits.float(), expected, atol=1e-6 if dtype == torch.float32 else 0.05, rtol=0
        )


@pytest.mark.parametrize(
    ("config", "shape", "message"),
    [
        (
            LoraConfig(target_modules=["q_proj"]),
            {"hidden_size": 32},
            r"cannot be loaded onto LlamaForCausalLM: .*size mismatch",
        ),
        (IA3Config(target_modules=["k_proj"], feedforward_modules=[]), {}, "only LoRA adapters"),
        (LoraConfig(target_modules=["lm_head"]), {}, r"changes the output embedding.*merge it"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(
    config: PeftConfig, shape: dict[str, int], message: str, tmp_path: Path
) -> None:
    source = save_adapter(tmp_path, config, **shape)
    with pytest.raises(ModelError, match=message):
        load_adapter(llama(), source, trainable=True)


def test_a_folder_without_an_adapter_is_an_error(tmp_path: Path) -> None:
    llama().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=r"has no adapter_config\.json"):
        resolve_adapter(str(tmp_path))
    with pytest.raises(ModelError, match=r"adapter 'someone/nothing' .*"):
        resolve_adapter("someone/nothing")


def test_experts_do_not_support_dropout() -> None:
    config = MixtralConfig(**SHAPE, num_local_experts=2)
    with pytest.raises(ModelError, match=r"set lora_dropout=0, or name lora_target_modules"):
        add_lora(MixtralForCausalLM(config), AdapterConfig(lora_dropout=0.05))
    adapted = add_lora(MixtralForCausalLM(config), AdapterConfig(lora_dropout=0.05, lora_target_modules=("q_proj",)))
    assert len(trainable(adapted)) == 4


def test_gradient_checkpointing_does_not_change_the_gradients_of_an_adapter() -> None:
    grads = []
    for checkpointing in (False, True):
        torch.manual_seed(1)
        adapted = add_lora(llama(), AdapterConfig(lora_r=4, lora_dropout=0.0)).train()
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter)
        if checkpointing:
            enable_gradient_checkpointing(adapted)
        adapted(IDS, labels=IDS).loss.backward()
        grads.append({name: p.grad for name, p in adapted.named_parameters() if p.requires_grad})
    assert all(grad is not None and grad.any() for grad in grads[0].values())
    torch.testing.assert_close(grads[1], grads[0], rtol=0, atol=0)
