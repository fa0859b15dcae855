"""Weights in a model's files that its class does not load: carried into the export, met by a renaming, or refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Qwen3_5Config, Qwen3_5ForConditionalGeneration

from raydpo.errors import ModelError
from raydpo.models.checkpoint_keys import checkpoint_keys, families, load_notes
from raydpo.models.export import ExportTarget, export_model
from raydpo.models.loading import load_causal_lm, load_tokenizer
from raydpo.models.source import resolve_model, weight_files
from tests.models.bases import IDS, make_base
from tests.models.partitioned import Partitioned, no_gather

Weights = dict[str, torch.Tensor]


def stored(folder: Path) -> Weights:
    return {name: tensor for path in weight_files(str(folder)) for name, tensor in load_file(path).items()}


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> Weights:
    """Replace the weights in a folder, and return them."""
    weights = {name: tensor.contiguous() for name, tensor in change(stored(folder)).items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights


def load(folder: Path) -> Any:
    return load_causal_lm(
        resolve_model(str(folder), None), dtype="float32", attn_implementation=None, trust_remote_code=False
    )


def trained(folder: Path) -> Any:
    """Return the model of a folder with other weights."""
    model = load(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1)
    return model


def export(model: Any, base: Path, out: Path, **options: Any) -> Weights:
    source = resolve_model(str(base), None)
    target = ExportTarget(str(out), source, load_tokenizer(source, trust_remote_code=False), is_main=True)
    export_model(model, target, options.pop("gather", no_gather), **options)
    return stored(out)


MTP = {
    "mtp.fc.weight": torch.randn(4, 8).to(torch.bfloat16),
    "model.layers.2.eh_proj.weight": torch.randn(16, 32),
    "medusa_head.0.steps": torch.tensor([3, 1], dtype=torch.int64),
}


@pytest.mark.parametrize("kind", ["one file", "shards", "bin"])
def test_weights_that_the_class_does_not_load_are_carried_byte_for_byte(
    kind: str, tiny_model: Path, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", tiny_model, "llama-tied")
    weights = rewrite(base, lambda weights: weights | MTP)
    config = json.loads((base / "config.json").read_text()) | {"num_nextn_predict_layers": 1}
    (base / "config.json").write_text(json.dumps(config))
    if kind == "bin":
        torch.save(weights, base / "pytorch_model.bin")
        (base / "model.safetensors").unlink()
    if kind == "shards":
        (base / "model.safetensors").unlink()
        halves = [dict(list(weights.items())[part::2]) for part in (0, 1)]
        for number, half in enumerate(halves):
            save_file(half, base / f"model-{number}.safetensors", metadata={"format": "pt"})
        places = {name: f"model-{number}.safetensors" for number, half in enumerate(halves) for name in half}
        (base / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    model = trained(base)
    expected = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    keys = checkpoint_keys(model)
    assert keys
    assert keys.carried(model) == (
        "3 weights that LlamaForCausalLM does not load are carried into the export: "
        "medusa_head.*, model.layers.2.*, mtp.*"
    )
    written = export(model, base, tmp_path / "out", gather=Partitioned(model).gather, max_shard_bytes=20_000)
    assert written.keys() == weights.keys()
    for name, tensor in written.items():
        assert tensor.dtype == weights[name].dtype
        torch.testing.assert_close(tensor, MTP[name] if name in MTP else expected[name], rtol=0, atol=0)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["num_nextn_predict_layers"] == 1
    assert export(trained(base), base, tmp_path / "out", carry=False).keys() == weights.keys() - MTP.keys()


PREFIXES: dict[str, Callable[[str], str]] = {
    "module.": lambda name: f"module.{name}",
    "_orig_mod.": lambda name: name.replace("layers.1.", "layers.1._orig_mod."),
    "base_model.model.": lambda name: f"base_model.model.{name}",
    "model.language_model.": lambda name: name.replace("model.", "model.language_model."),
    "language_model.": lambda name: f"language_model.{name}",
}


@pytest.mark.parametrize(
    ("prefix", "architecture"), list(zip(PREFIXES, ["llama-tied", "llama", "mixtral", "mixtral", "llama"], strict=True))
)
def test_weights_under_another_prefix_are_met_and_exported_under_the_models_own(
    prefix: str, architecture: str, tiny_model: Path, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", tiny_model, architecture)
    plain = stored(base)
    expected = AutoModelForCausalLM.from_pretrained(base)(IDS).logits
    rewrite(base, lambda weights: {PREFIXES[prefix](name): tensor for name, tensor in weights.items()})
    model = load(base)
    torch.testing.assert_close(model(IDS).logits, expected, rtol=0, atol=0)
    (note,) = load_notes(model)
    assert note.startswith(f"weights of {base} are renamed to those of {type(model).__name__}: {prefix}*")
    written = export(model, base, tmp_path / "out")
    assert written.keys() == plain.keys()
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    torch.testing.assert_close(loaded(IDS).logits, expected, rtol=0, atol=0)


def test_names_that_no_single_renaming_meets_are_refused(tiny_model: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model, "llama")

    def two_models(weights: Weights) -> Weights:
        return {f"{part}.{name}": tensor + 1 for name, tensor in weights.items() for part in ("ema", "raw")}

    rewrite(base, two_models)
    with pytest.raises(ModelError, match=r"lack 21 weights .*have 42 unexpected ones, first ema\..*; give a model"):
        load(base)


def test_the_note_names_what_the_carried_weights_have_in_common() -> None:
    tables = [f"model.layers.{layer}.self_attn.rotary_emb.inv_freq" for layer in range(32)]
    head = ["model.layers.61.eh_proj.weight", "model.layers.61.enorm.weight", "mtp.fc.weight", "score"]
    tower = ["model.visual.blocks.0.norm.weight", "vision_tower.blocks.0.norm.weight"]
    assert families([*tables, *head, *tower]) == [
        "model.layers.*.self_attn.rotary_emb.inv_freq",
        "model.layers.61.*",
        "mtp.*",
        "score",
        "model.visual.*",
        "vision_tower.*",
    ]


def test_a_further_head_is_not_taken_for_the_model(tiny_model: Path, tmp_path: Path) -> None:
    """Check a file that lacks the last norm and has a further head with a layer and a norm of the same names."""
    base = make_base(tmp_path / "base", tiny_model, "llama")

    def with_head(weights: Weights) -> Weights:
        head = {
            name.replace("model.", "mtp."): tensor.clone() for name, tensor in weights.items() if "layers.1" not in name
        }
        return {name: tensor for name, tensor in {**weights, **head}.items() if name != "model.norm.weight"}

    rewrite(base, with_head)
    with pytest.raises(ModelError, match=r"lack 1 weights .*model\.norm\.weight"):
        load(base)


def test_an_adapter_that_is_not_merged_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model, "llama")

    def adapted(weights: Weights) -> Weights:
        return {name.replace("q_proj.weight", "q_proj.base_layer.weight"): tensor for name, tensor in weights.items()}

    rewrite(base, adapted)
    with pytest.raises(ModelError, match=r"lack 2 weights .*q_proj\.weight.*; merge the adapter"):
        load(base)


def test_a_layer_that_the_config_leaves_out_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model, "llama")
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1}))
    with pytest.raises(ModelError, match=r"have a layer model\.layers\.1 like the 1 that .*correct the number"):
        load(base)
    (base / "config.json").write_text(json.dumps(config | {"num_hidden_layers": 1, "num_nextn_predict_layers": 1}))
    assert len(load(base).model.layers) == 1


QWEN = {
    "vocab_size": 260,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "linear_num_key_heads": 1,
    "linear_num_value_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}
VISION = {"depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "out_hidden_size": 16}


def test_a_text_model_out_of_a_vision_language_model_is_exported_whole(tiny_model: Path, tmp_path: Path) -> None:
    """Check the whole model by its own class, and the text model by the class that was trained."""
    base = make_base(tmp_path / "base", tiny_model, "llama")
    whole = Qwen3_5ForConditionalGeneration(Qwen3_5Config(text_config=QWEN, vision_config=VISION))
    whole.save_pretrained(base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"architectures": ["Qwen3_5ForCausalLM"]}))
    model = trained(base)
    assert type(model).__name__ == "Qwen3_5ForCausalLM"
    logits = model(IDS).logits
    written = export(model, base, tmp_path / "out")
    assert written.keys() == stored(base).keys()
    assert json.loads((tmp_path / "out" / "config.json").read_text())["architectures"] == [type(model).__name__]
    for architecture in (Qwen3_5ForConditionalGeneration, AutoModelForCausalLM):
        loaded, info = architecture.from_pretrained(tmp_path / "out", output_loading_info=True)
        assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
        torch.testing.assert_close(loaded(IDS).logits, logits, rtol=0, atol=0)
    towers = (name for name in written if "visual" in name)
    assert all(torch.equal(written[name], stored(base)[name]) for name in towers)
