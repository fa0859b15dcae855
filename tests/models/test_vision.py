"""The parts of vision-language models: what is frozen, and where LoRA adapters go."""

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForImageTextToText

from raydpo.config import AdapterConfig
from raydpo.errors import ModelError
from raydpo.models.adapters import add_lora
from raydpo.models.attention.choice import IMPLEMENTATIONS, VISION_SHARING_MODEL_TYPES, choose
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.export import ExportTarget, export_model
from raydpo.models.loading import load_causal_lm, load_config, load_tokenizer
from raydpo.models.model_flops import flops_model
from raydpo.models.source import resolve_model
from raydpo.models.vision import PROJECTOR, TEXT, TOWER, freeze, frozen_modules, part_of_each
from tests.models.packed import packed, pairs, plain_logits
from tests.models.partitioned import no_gather
from tests.models.vision_models import VOCABULARY, vision_model

TOWERS = {"llava": "vision_tower", "qwen2_5_vl": "visual", "gemma3": "vision_tower", "smolvlm": "vision_model"}
MERGERS = {
    "llava": "multi_modal_projector",
    "qwen2_5_vl": "visual.merger",
    "gemma3": "multi_modal_projector",
    "smolvlm": "connector",
}
TEXT_ONLY = sorted(VISION_SHARING_MODEL_TYPES | {"glm4v", "lfm2_vl", "llama4", "mllama", "qwen3_5"})


def folder_of(family: str, folder: Path, tiny_model: Path) -> Path:
    """Write a model's folder with a tokenizer."""
    vision_model(family).save_pretrained(folder)
    load_tokenizer(resolve_model(str(tiny_model), None), trust_remote_code=False).save_pretrained(folder)
    return folder


def load(folder: Path) -> tuple[Any, bool]:
    """Return the model as a scoring worker loads it, and whether it shares prompts."""
    source = resolve_model(str(folder), None)
    config = load_config(source, trust_remote_code=False)
    choice = choose(config, attn_implementation=None, share_prompts=True, gpu=False, dtype="float32")
    implementation = choice.implementation
    model = load_causal_lm(source, dtype="float32", attn_implementation=implementation, trust_remote_code=False)
    return model, choice.shares


@pytest.mark.parametrize("family", TEXT_ONLY)
def test_text_has_the_log_probs_of_the_own_forward_and_no_weight_is_lost(
    family: str, tmp_path: Path, tiny_model: Path
) -> None:
    folder = folder_of(family, tmp_path / "source", tiny_model)
    whole = vision_model(family)
    batch = packed(pairs())
    with torch.no_grad():
        logits, targets = plain_logits(whole, pairs(), batch)
        expected = logits.log_softmax(-1).gather(1, targets[:, None])[:, 0]
        model, shares = load(folder)
        assert shares == (family in VISION_SHARING_MODEL_TYPES)
        found = CompletionLogps(model, shares=shares).eval()(batch)[0][torch.from_numpy(batch.target_index)]
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)

    source = resolve_model(str(folder), None)
    tokenizer = load_tokenizer(source, trust_remote_code=False)
    export_model(model, ExportTarget(str(tmp_path / "out"), source, tokenizer, True), no_gather)
    back = AutoModelForImageTextToText.from_pretrained(tmp_path / "out")
    assert back.state_dict().keys() == whole.state_dict().keys()
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(back.state_dict()[name], weight, rtol=0, atol=0)
    assert back.config.vision_config.hidden_size == whole.config.vision_config.hidden_size


def test_attention_over_packed_rows_is_for_the_text_model_only(tmp_path: Path, tiny_model: Path) -> None:
    model, _ = load(folder_of("qwen2_5_vl", tmp_path, tiny_model))
    assert model.config.text_config._attn_implementation == IMPLEMENTATIONS["sdpa"]
    assert model.config.vision_config._attn_implementation == "sdpa"


def test_the_flops_of_the_text_model_count() -> None:
    """A token is multiplied with the linear layers of the language model, and not with those of the tower."""
    model = vision_model("llava")
    layers = model.model.language_model.layers
    weights = sum(weight.numel() for weight in layers.parameters()) + model.model.language_model.norm.weight.numel()
    found = flops_model(model.config)
    assert found.token == 2 * weights
    assert found.completion_token == 2 * 32 * VOCABULARY


@pytest.mark.parametrize("family", sorted(TOWERS))
def test_the_tower_and_the_projector_are_frozen_as_asked(family: str) -> None:
    parts = part_of_each(vision_model(family))
    tower, merger = TOWERS[family], MERGERS[family]
    for name, part in parts.items():
        path = name.removeprefix("model.")
        expected = PROJECTOR if path.startswith(f"{merger}.") else TOWER if path.startswith(f"{tower}.") else TEXT
        assert part == expected, name
    assert set(parts.values()) == {TOWER, PROJECTOR, TEXT}
    for chosen in ({TOWER}, {PROJECTOR}, {TOWER, PROJECTOR}, set()):
        model = vision_model(family)
        freeze(model, tower=TOWER in chosen, projector=PROJECTOR in chosen)
        frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
        assert frozen == {name for name, part in parts.items() if part in chosen}


def adapted(model: Any) -> set[str]:
    """Return the names of the modules that have an adapter."""
    return {name.split(".lora_A")[0] for name, _ in model.get_base_model().named_parameters() if ".lora_A" in name}


@pytest.mark.parametrize("family", sorted(TOWERS))
def test_adapters_go_to_the_language_model_only(family: str) -> None:
    default = adapted(add_lora(vision_model(family), AdapterConfig(use_peft=True)))
    assert len(default) == 14
    assert all("language_model.layers" in name or "text_model.layers" in name for name in default)

    named = AdapterConfig(use_peft=True, lora_target_modules=("q_proj",))
    model = vision_model(family)
    found = adapted(add_lora(model, named, frozen_modules(model, tower=True, projector=True)))
    assert found == {name for name in default if name.endswith("q_proj")}


def test_named_targets_reach_a_tower_that_is_not_frozen() -> None:
    """The towers of CLIP have layers `q_proj`, as language models have."""
    model = vision_model("llava")
    named = AdapterConfig(use_peft=True, lora_target_modules=("q_proj", "linear_1"))
    found = adapted(add_lora(model, named, frozen_modules(model, tower=False, projector=False)))
    assert sum("vision_tower" in name for name in found) == 2
    assert sum("multi_modal_projector" in name for name in found) == 1

    model = vision_model("llava")
    with pytest.raises(ModelError, match=r"lora_target_modules=linear_1 is .*freeze_multi_modal_projector=false"):
        add_lora(model, named, frozen_modules(model, tower=True, projector=True))
