"""Exported models and adapters can be loaded, and parameters are gathered in small groups during the export."""

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
)

from raydpo.config import AdapterConfig
from raydpo.errors import ModelError, StorageError
from raydpo.models.adapters import add_lora
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.export import ExportTarget, export_adapter, export_model
from raydpo.models.loading import disable_dropout, load_causal_lm, load_tokenizer
from raydpo.models.source import resolve_model, weight_files
from tests.models.bases import ARCHITECTURES, IDS, SHAPE, add_custom_code, make_base
from tests.models.partitioned import Partitioned, no_gather


def stored(folder: Path | str) -> dict[str, torch.Tensor]:
    return {name: tensor for path in weight_files(str(folder)) for name, tensor in load_file(path).items()}


def prepare(base: Path, out: Path, dtype: str = "float32") -> tuple[Any, ExportTarget]:
    """Return a model as it is after some training steps, and the target of its export."""
    source = resolve_model(str(base), None)
    model = load_causal_lm(source, dtype=dtype, attn_implementation=None, trust_remote_code=False)
    disable_dropout(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model, ExportTarget(str(out), source, load_tokenizer(source, trust_remote_code=False), is_main=True)


@pytest.mark.parametrize(
    ("architecture", "dtype"), [*((name, "float32") for name in ARCHITECTURES), ("mixtral", "bfloat16")]
)
def test_an_export_equals_what_save_pretrained_writes(
    architecture: str, dtype: str, tiny_model: Path, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", tiny_model, architecture)
    model, target = prepare(base, tmp_path / "out", dtype)
    model.save_pretrained(tmp_path / "expected")
    with torch.no_grad():
        logits = model.eval()(IDS).logits
    trained = CompletionLogps(model, shares=False).causal_lm
    export_model(trained, target, Partitioned(trained).gather)

    expected, written = stored(tmp_path / "expected"), stored(tmp_path / "out")
    assert written.keys() == expected.keys() == stored(base).keys()
    for name, tensor in written.items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=0)
    loaded, info = AutoModelForCausalLM.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(info[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert loaded.dtype == getattr(torch, dtype)
    torch.testing.assert_close(loaded.eval()(IDS).logits, logits, rtol=0, atol=0)


def test_side_files_are_those_of_the_base(tiny_model: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model, "llama-tied")
    model, target = prepare(base, tmp_path / "out", "bfloat16")
    export_model(model, target, no_gather)
    config, base_config = (json.loads((folder / "config.json").read_text()) for folder in (tmp_path / "out", base))
    # Dropout and cache have their values from the base, although training switched them off.
    assert (base_config["attention_dropout"], base_config["use_cache"]) == (0.1, True)
    assert config == base_config | {"dtype": "bfloat16"}
    assert GenerationConfig.from_pretrained(tmp_path / "out").temperature == 0.7
    tokenizers = [AutoTokenizer.from_pretrained(folder) for folder in (tmp_path / "out", base)]
    messages = [{"role": "user", "content": "Hé!"}]
    rendered = [tokenizer.apply_chat_template(messages, tokenize=False) for tokenizer in tokenizers]
    assert rendered[0] == rendered[1] == "<user>Hé!"
    assert tokenizers[0]("Hé!").input_ids == tokenizers[1]("Hé!").input_ids


@pytest.mark.parametrize("architecture", ["llama-tied", "mixtral"])
def test_shards_are_bounded_and_indexed(architecture: str, tiny_model: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model, architecture)
    model, target = prepare(base, tmp_path / "out")
    expected = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    limit = 20_000
    export_model(model, target, Partitioned(model).gather, max_shard_bytes=limit)

    files = sorted(path.name for path in (tmp_path / "out").glob("*.safetensors"))
    assert files == [f"model-{number:05d}-of-{len(files):05d}.safetensors" for number in range(1, len(files) + 1)]
    index = json.loads((tmp_path / "out" / "model.safetensors.index.json").read_text())
    sizes = []
    for file in files:
        with safe_open(tmp_path / "out" / file, "pt") as shard:
            assert shard.metadata() == {"format": "pt"}
            assert {name for name, place in index["weight_map"].items() if place == file} == set(shard.keys())
            sizes.append(sum(shard.get_tensor(name).nbytes for name in shard.keys()))  # noqa: SIM118
    assert index["metadata"]["total_size"] == sum(sizes)
    # Shards are as full as possible: any two consecutive ones together exceed the limit.
    assert max(sizes) <= limit
    assert min(first + second for first, second in pairwise(sizes)) > limit
    reloaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out").state_dict()
    for name, tensor in expected.items():
        torch.testing.assert_close(reloaded[name], tensor, rtol=0, atol=0)


@pytest.mark.parametrize("architecture", ["llama-deep", "mixtral"])
def test_one_layer_is_gathered_at_a_time_and_all_ranks_gather_the_same(
    architecture: str, tiny_model: Path, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", tiny_model, architecture)
    model, target = prepare(base, tmp_path / "out")
    layer_bytes = sum(parameter.nbytes for parameter in model.model.layers[0].parameters())
    largest = max(layer_bytes, model.model.embed_tokens.weight.nbytes)
    count = len(list(model.parameters()))
    partitioned = Partitioned(model)
    export_model(model, replace(target, is_main=False), partitioned.gather)
    assert not (tmp_path / "out").exists()
    groups_on_other_ranks = partitioned.groups[:]
    export_model(model, target, partitioned.gather)
    assert partitioned.groups == groups_on_other_ranks * 2
    assert sum(map(len, groups_on_other_ranks)) == count
    assert partitioned.peak_gathered_bytes == largest
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out"}


class WithBuffers(LlamaForCausalLM):
    """A Llama with a buffer among its weights, and a shared weight that its class does not declare as tied."""

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__(config)
        self.register_buffer("steps", torch.tensor([1.5, 2.5]))
        self.register_buffer("scratch", torch.zeros(2), persistent=False)
        self.model.layers[1].mlp.up_proj.weight = self.model.layers[0].mlp.up_proj.weight


def test_buffers_and_undeclared_shared_weights_are_exported(tiny_model: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model, "llama")
    _, target = prepare(base, tmp_path / "out")
    export_model(WithBuffers(LlamaConfig(**SHAPE)), target, no_gather)
    written = stored(tmp_path / "out")
    assert written["steps"].tolist() == [1.5, 2.5]
    assert "scratch" not in written
    first, second = (written[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in (0, 1))
    assert torch.equal(first, second)


def test_custom_code_is_exported_too(tiny_model: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model, "llama")
    add_custom_code(base)
    source = resolve_model(str(base), None, trust_remote_code=True)
    model = load_causal_lm(source, dtype="float32", attn_implementation=None, trust_remote_code=True)
    tokenizer = load_tokenizer(source, trust_remote_code=True)
    export_model(model, ExportTarget(str(tmp_path / "out"), source, tokenizer, is_main=True), no_gather)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "out", trust_remote_code=True)
    assert type(loaded).__name__ == "OwnForCausalLM"
    torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, rtol=0, atol=0)


@pytest.mark.parametrize("adapter", [False, True])
def test_an_empty_weight_is_never_written(adapter: bool, tiny_model: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model, "llama")
    model, target = prepare(base, tmp_path / "out")
    if adapter:
        model = add_lora(model, AdapterConfig(lora_r=4))
    Partitioned(model)
    with pytest.raises(ModelError, match=r"weight .* has shape \(0,\) at export, not"):
        export_adapter(model, target, no_gather) if adapter else export_model(model, target, no_gather)
    assert {path.name for path in tmp_path.iterdir()} == {"base"}


def test_an_older_export_is_replaced_completely_or_kept(tiny_model: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model, "llama-tied")
    model, target = prepare(base, tmp_path / "out")
    export_model(model, target, no_gather, max_shard_bytes=20_000)
    before = {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()}

    @contextmanager
    def failing_gather(parameters: Sequence[nn.Parameter]) -> Iterator[None]:
        if parameters[0] is model.model.norm.weight:
            raise KeyboardInterrupt
        yield

    with pytest.raises(KeyboardInterrupt):
        export_model(model, target, failing_gather)
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == before
    export_model(model, target, no_gather)
    assert [path.name for path in (tmp_path / "out").glob("model*")] == ["model.safetensors"]
    assert {path.name for path in tmp_path.iterdir()} == {"base", "out"}


def test_a_folder_that_cannot_be_written_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model, "llama-tied")
    (tmp_path / "file").write_text("in the way")
    model, target = prepare(base, tmp_path / "file" / "out")
    with pytest.raises(StorageError, match=r"cannot write .*out"):
        export_model(model, target, no_gather)


@pytest.mark.parametrize(
    ("architecture", "options"),
    [
        ("llama", {}),
        ("llama-tied", {"use_dora": True}),
        ("llama", {"use_rslora": True, "lora_target_modules": ("q_proj",), "lora_modules_to_save": ("embed_tokens",)}),
        ("mixtral", {"lora_dropout": 0.0}),
    ],
)
def test_an_adapter_loads_on_its_base(
    architecture: str, options: dict[str, Any], tiny_model: Path, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", tiny_model, architecture)
    source = resolve_model(str(base), None)
    model = load_causal_lm(source, dtype="float32", attn_implementation=None, trust_remote_code=False)
    adapted = add_lora(model, AdapterConfig(lora_r=4, **options))
    torch.manual_seed(2)
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))
    logits = adapted.eval()(IDS).logits.detach()
    assert not torch.allclose(logits, AutoModelForCausalLM.from_pretrained(base)(IDS).logits)
    tokenizer = load_tokenizer(source, trust_remote_code=False)
    target = ExportTarget(str(tmp_path / "out"), source, tokenizer, is_main=True)
    count = sum(parameter.requires_grad for parameter in adapted.parameters())
    CompletionLogps(adapted, shares=False)
    partitioned = Partitioned(adapted)
    export_adapter(adapted, replace(target, is_main=False), partitioned.gather)
    groups_on_other_ranks = partitioned.groups[:]
    export_adapter(adapted, target, partitioned.gather)

    assert partitioned.groups == groups_on_other_ranks * 2
    assert sum(map(len, groups_on_other_ranks)) == count, "the frozen base is not gathered"
    config = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == str(base)
    assert os.path.getsize(tmp_path / "out" / "adapter_model.safetensors") < 200_000
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), str(tmp_path / "out"))
    torch.testing.assert_close(loaded.eval()(IDS).logits, logits, rtol=1e-5, atol=1e-6)
    assert AutoTokenizer.from_pretrained(tmp_path / "out").eos_token == "<eos>"
