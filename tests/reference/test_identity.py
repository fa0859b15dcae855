"""The identity of a reference is its content: which changes keep the identity, and which give another one."""

import hashlib
import json
import os
import shutil
import struct
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from raydpo.errors import ModelError, ReferenceMismatch
from raydpo.reference.fingerprint import identify
from raydpo.reference.identity import ReferenceIdentity

NUMERICS = {"dtype": "float32", "attn_implementation": "sdpa"}


@pytest.fixture
def folder(tiny_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model that a test may change."""
    return shutil.copytree(tiny_model, tmp_path / "model")


def identity_of(folder: Path, adapter: Path | None = None, **numerics: str) -> ReferenceIdentity:
    return identify(str(folder), None if adapter is None else str(adapter), NUMERICS | numerics)


def change_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def change_json(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_the_path_does_not_count(folder: Path) -> None:
    before = identity_of(folder)
    assert identity_of(folder.rename(folder.parent / "renamed")) == before


def test_the_number_and_order_of_files_do_not_count(folder: Path, tmp_path: Path) -> None:
    before = identity_of(folder)
    LlamaForCausalLM.from_pretrained(folder).save_pretrained(tmp_path / "sharded", max_shard_size="20KB")
    assert len(list((tmp_path / "sharded").glob("*.safetensors"))) > 3
    assert identity_of(tmp_path / "sharded") == before
    weights = load_file(folder / "model.safetensors")
    save_file(dict(reversed(weights.items())), folder / "model.safetensors", metadata={"format": "pt", "by": "hand"})
    assert identity_of(folder) == before


def test_other_files_in_the_folder_do_not_count(folder: Path) -> None:
    before = identity_of(folder)
    (folder / "README.md").write_text("# Tiny")
    save_file({"x": torch.ones(3)}, folder / "consolidated.safetensors")
    assert identity_of(folder) == before


def test_a_bin_file_has_the_identity_of_its_safetensors(folder: Path) -> None:
    before = identity_of(folder)
    weights = load_file(folder / "model.safetensors")
    torch.save({name: tensor.clone() for name, tensor in weights.items()}, folder / "pytorch_model.bin")
    os.remove(folder / "model.safetensors")
    assert identity_of(folder) == before
    weights["model.norm.weight"][3] += 1e-6
    torch.save(weights, folder / "pytorch_model.bin")
    assert identity_of(folder).weights != before.weights


def test_one_changed_number_counts(folder: Path) -> None:
    before = identity_of(folder)

    def nudge(weights: dict[str, torch.Tensor]) -> None:
        weight = weights["model.layers.1.mlp.up_proj.weight"]
        weight[3, 5] = torch.nextafter(weight[3, 5], torch.tensor(1.0))

    change_weights(folder, nudge)
    after = identity_of(folder)
    assert (after.architecture, after.numerics) == (before.architecture, before.numerics)
    assert after.weights != before.weights
    assert after.digest != before.digest


def test_names_shapes_and_types_count(folder: Path) -> None:
    digests = {identity_of(folder).weights}

    def swap(weights: dict[str, torch.Tensor]) -> None:
        first, second = (f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1))
        weights[first], weights[second] = weights[second], weights[first]

    def reshape(weights: dict[str, torch.Tensor]) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        weights[name] = weights[name].reshape(-1)

    def reinterpret(weights: dict[str, torch.Tensor]) -> None:
        name = "model.layers.0.mlp.up_proj.weight"
        weights[name] = weights[name].view(torch.int32)

    for count, change in enumerate((swap, reshape, reinterpret), start=2):
        change_weights(folder, change)
        digests.add(identity_of(folder).weights)
        assert len(digests) == count


def test_the_weights_digest_is_computed_as_documented(tmp_path: Path) -> None:
    tensors = {"b": torch.arange(6, dtype=torch.float32).reshape(2, 3), "a": torch.tensor([1, 2], dtype=torch.bfloat16)}
    save_file(tensors, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("{}")
    contents = {
        "a": ("BF16", [2], struct.pack("<2H", 0x3F80, 0x4000)),
        "b": ("F32", [2, 3], struct.pack("<6f", *range(6))),
    }
    lines = [
        json.dumps([name, dtype, shape, hashlib.sha256(content).hexdigest()], separators=(",", ":"))
        for name, (dtype, shape, content) in contents.items()
    ]
    assert identity_of(tmp_path).weights == hashlib.sha256("\n".join(lines).encode()).hexdigest()


@pytest.mark.parametrize(
    "changes",
    [
        {"rope_parameters": {"rope_theta": 20000.0, "rope_type": "default"}},
        {"rms_norm_eps": 1e-5},
        {"num_attention_heads": 8},
        {"hidden_act": "gelu"},
    ],
)
def test_config_changes_that_affect_the_forward_count(folder: Path, changes: dict[str, Any]) -> None:
    before = identity_of(folder)
    change_json(folder / "config.json", **changes)
    after = identity_of(folder)
    assert after.architecture != before.architecture
    assert after.weights == before.weights


def test_config_changes_that_do_not_affect_the_forward_do_not_count(folder: Path) -> None:
    before = identity_of(folder)
    change_json(
        folder / "config.json",
        _name_or_path="/somewhere/else",
        transformers_version="4.1.0",
        use_cache=False,
        torch_dtype="bfloat16",
        dtype="bfloat16",
        attention_dropout=0.1,
        architectures=["Renamed"],
    )
    assert identity_of(folder) == before


def test_code_that_comes_with_the_model_counts(folder: Path) -> None:
    change_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "own.Own"})
    digests = set()
    for code in ("scale = 1", "scale = 2"):
        (folder / "own.py").write_text(code)
        digests.add(identity_of(folder).architecture)
    assert len(digests) == 2


def test_numerics_count_in_any_order(folder: Path) -> None:
    before = identity_of(folder)
    assert identity_of(folder, dtype="bfloat16").digest != before.digest
    assert identify(str(folder), None, dict(reversed(NUMERICS.items()))) == before


@pytest.fixture
def adapter(folder: Path, tmp_path: Path) -> Path:
    """Return a LoRA adapter of the model, as peft saves it."""
    torch.manual_seed(0)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj", "k_proj"], init_lora_weights=False)
    get_peft_model(LlamaForCausalLM.from_pretrained(folder), config).save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_an_adapter_counts_with_its_weights_and_config(folder: Path, adapter: Path) -> None:
    plain, before = identity_of(folder), identity_of(folder, adapter)
    assert plain == replace(before, adapter=None)
    assert plain.digest != before.digest
    modules = json.loads((adapter / "adapter_config.json").read_text())["target_modules"]
    change_json(adapter / "adapter_config.json", base_model_name_or_path="/moved", target_modules=modules[::-1])
    assert identity_of(folder, adapter) == before
    change_json(adapter / "adapter_config.json", lora_alpha=99)
    assert identity_of(folder, adapter).adapter != before.adapter
    os.remove(adapter / "adapter_model.safetensors")
    with pytest.raises(ModelError, match=r"no adapter_model\.safetensors"):
        identity_of(folder, adapter)


def test_an_identity_survives_json_and_detects_changes(folder: Path) -> None:
    identity = identity_of(folder)
    content = json.loads(json.dumps(identity.to_dict()))
    assert ReferenceIdentity.from_dict(content) == identity
    assert 16 <= len(identity.digest) <= 32
    int(identity.digest, 16)
    with pytest.raises(ReferenceMismatch, match="its fields give"):
        ReferenceIdentity.from_dict(content | {"weights": "0" * 64})
    with pytest.raises(ReferenceMismatch, match="lacks 'weights'"):
        ReferenceIdentity.from_dict({name: value for name, value in content.items() if name != "weights"})


@pytest.mark.parametrize("size", [0, 5, 300, 20_000])
def test_a_truncated_file_is_an_error(folder: Path, size: int) -> None:
    os.truncate(folder / "model.safetensors", size)
    with pytest.raises(ModelError, match=r"model\.safetensors is not a complete safetensors file"):
        identity_of(folder)


def test_a_folder_without_weights_is_an_error(folder: Path) -> None:
    os.remove(folder / "model.safetensors")
    with pytest.raises(ModelError, match="no weights"):
        identity_of(folder)
    (folder / "pytorch_model.bin").write_bytes(b"no pickle")
    with pytest.raises(ModelError, match="cannot be read"):
        identity_of(folder)
