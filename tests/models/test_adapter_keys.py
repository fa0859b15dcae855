"""Adapters whose weights have other names than those of the model's modules: met by renaming, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from raydpo.errors import ModelError
from raydpo.models.adapters import load_adapter
from raydpo.models.checkpoint_keys import load_notes
from raydpo.models.source import resolve_adapter
from tests.models.bases import ARCHITECTURES, IDS

FULL: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False}
CONFIGS: dict[str, dict[str, Any]] = {
    "plain": FULL,
    "dora": FULL | {"use_dora": True},
    "embedding": FULL | {"target_modules": ["q_proj", "embed_tokens"]},
    "saved": FULL | {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "pattern": FULL | {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"v_proj": 2}},
    "layers": FULL | {"target_modules": ["q_proj"], "layers_to_transform": [1]},
}


def base(architecture: str = "llama") -> Any:
    torch.manual_seed(0)
    return ARCHITECTURES[architecture]()


def save(folder: Path, config: str, architecture: str = "llama") -> torch.Tensor:
    """Save an adapter with random weights, and return the logits of the model with it."""
    model = get_peft_model(base(architecture), LoraConfig(task_type="CAUSAL_LM", **CONFIGS[config]))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    written = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(written | {"init_lora_weights": True}))
    logits: torch.Tensor = model.eval()(IDS).logits
    return logits


def rename(folder: Path, new: Callable[[str], str | None]) -> None:
    """Rename the weights in an adapter's file; those without a new name are left out."""
    tensors = load_file(folder / "adapter_model.safetensors")
    renamed = {name: tensor for old, tensor in tensors.items() if (name := new(old))}
    save_file(renamed, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def named(key: str) -> str:
    """Return the name that a weight has in the state dict of a model whose adapter is called `sft`."""
    if key.endswith((".lora_magnitude_vector", ".lora_embedding_A", ".lora_embedding_B")):
        return f"{key}.sft{'.weight' if 'magnitude' in key else ''}"
    if key.endswith(".weight") and ".lora_" not in key:
        return key.replace(".weight", ".modules_to_save.sft.weight")
    return key.replace(".weight", ".sft.weight")


RENAMED: dict[str, Callable[[str], str]] = {
    "nested": lambda key: key.replace("base_model.model.", "base_model.model.base_model.model."),
    "without base_model": lambda key: key.removeprefix("base_model.model."),
    "of a vision-language class": lambda key: key.replace("model.model.", "model.model.language_model."),
    "of an older vision-language class": lambda key: key.replace("model.model.", "model.language_model.model."),
    "compiled": lambda key: key.replace("base_model.model.", "base_model.model._orig_mod."),
    "named": named,
}


@pytest.mark.parametrize("config", CONFIGS)
def test_adapters_that_fit_are_loaded_without_a_note(config: str, tmp_path: Path) -> None:
    logits = save(tmp_path, config)
    adapted = load_adapter(base(), resolve_adapter(str(tmp_path)), trainable=False)
    torch.testing.assert_close(adapted(IDS).logits, logits, rtol=0, atol=0)
    assert load_notes(adapted.get_base_model()) == []


@pytest.mark.parametrize("config", ["dora", "embedding", "saved"])
@pytest.mark.parametrize("names", RENAMED)
def test_names_that_one_change_meets_are_mapped_and_told(names: str, config: str, tmp_path: Path) -> None:
    logits = save(tmp_path, config)
    assert not torch.allclose(logits, base()(IDS).logits)
    rename(tmp_path, RENAMED[names])
    adapted = load_adapter(base(), resolve_adapter(str(tmp_path)), trainable=True)
    torch.testing.assert_close(adapted.eval()(IDS).logits, logits, rtol=0, atol=0)
    (note,) = load_notes(adapted.get_base_model())
    assert note.startswith(f"weights of the adapter {tmp_path} are renamed to those of its model: ")


def test_the_adapter_of_a_mixture_is_loaded_as_peft_loads_it(tmp_path: Path) -> None:
    logits = save(tmp_path, "plain", "mixtral")
    adapted = load_adapter(base("mixtral"), resolve_adapter(str(tmp_path)), trainable=False)
    torch.testing.assert_close(adapted(IDS).logits, logits, rtol=0, atol=0)
    again = PeftModel.from_pretrained(base("mixtral"), str(tmp_path)).eval()
    torch.testing.assert_close(again(IDS).logits, logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("config", "new", "message"),
    [
        ("plain", lambda key: None if "layers.1." in key else key, r"lacks 14 weights .*first .*layers\.1\..*complete"),
        ("dora", lambda key: None if "magnitude" in key else key, r"lacks 14 weights .*lora_magnitude_vector"),
        ("saved", lambda key: None if "embed" in key else key, r"lacks 1 weights .*embed_tokens\.weight.*modules_to_s"),
        ("layers", lambda key: key.replace("layers.1.", "layers.7."), r"lacks 2 .* has 2 that meet no module of it"),
        ("plain", lambda key: key.replace("self_attn", "attention"), r"lacks 16 weights .*has 16 that meet no module"),
        ("plain", lambda key: None, r"lacks 28 weights"),
    ],
)
def test_an_adapter_that_is_not_complete_or_meets_no_module_is_refused(
    config: str, new: Callable[[str], str | None], message: str, tmp_path: Path
) -> None:
    save(tmp_path, config)
    rename(tmp_path, new)
    with pytest.raises(ModelError, match=message):
        load_adapter(base(), resolve_adapter(str(tmp_path)), trainable=True)


def test_a_further_layer_in_the_file_is_refused(tmp_path: Path) -> None:
    save(tmp_path, "plain", "llama-deep")
    model = base()
    with pytest.raises(ModelError, match=r"has 126 that meet no module of it, first .*layers\.10\."):
        load_adapter(model, resolve_adapter(str(tmp_path)), trainable=True)


def test_an_adapter_saved_under_a_name_is_found(tmp_path: Path, tiny_model: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    get_peft_model(model, LoraConfig(target_modules=["q_proj"]), adapter_name="sft").save_pretrained(tmp_path)
    assert resolve_adapter(str(tmp_path)).folder == str(tmp_path / "sft")
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"several adapters, other, sft; give the folder of one"):
        resolve_adapter(str(tmp_path))
