"""Loading a model and its tokenizer: what is loaded, and the errors for files that cannot be used."""

import json
import logging
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.utils.tqdm import enable_progress_bars
from safetensors.torch import load_file, save_file
from transformers import (
    FalconConfig,
    FalconForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
    PhimoeConfig,
    PhimoeForCausalLM,
    RwkvConfig,
    RwkvForCausalLM,
)
from transformers.utils import logging as transformers_logging

from raydpo.errors import ModelError
from raydpo.models.loading import (
    disable_dropout,
    enable_gradient_checkpointing,
    load_causal_lm,
    load_tokenizer,
    quiet_libraries,
)
from raydpo.models.source import resolve_model
from tests.models.bases import add_custom_code

IDS = torch.tensor([[5, 9, 42, 17, 200, 3, 8]])


def load(folder: Path, **changes: Any) -> Any:
    options: dict[str, Any] = {"dtype": "float32", "attn_implementation": None, "trust_remote_code": False} | changes
    return load_causal_lm(resolve_model(str(folder), None), **options)


@pytest.fixture
def copy_of(tiny_model: Path, tmp_path: Path) -> Path:
    """Return a copy of the tiny model that a test may damage."""
    folder = tmp_path / "copy"
    shutil.copytree(tiny_model, folder)
    return folder


def test_a_tokenizer_needs_an_end_of_sequence_token(copy_of: Path) -> None:
    tokenizer_config = json.loads((copy_of / "tokenizer_config.json").read_text())
    del tokenizer_config["eos_token"]
    (copy_of / "tokenizer_config.json").write_text(json.dumps(tokenizer_config))
    with pytest.raises(ModelError, match="no eos_token"):
        load_tokenizer(resolve_model(str(copy_of), None), trust_remote_code=False)


def test_a_folder_without_a_tokenizer_is_an_error(copy_of: Path) -> None:
    for path in [*copy_of.glob("tokenizer*"), *copy_of.glob("*.jinja")]:
        path.unlink()
    with pytest.raises(ModelError, match="tokenizer"):
        load_tokenizer(resolve_model(str(copy_of), None), trust_remote_code=False)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_model_computes_the_same_as_from_pretrained(tiny_model: Path, dtype: str) -> None:
    model = load(tiny_model, dtype=dtype, attn_implementation="eager")
    expected = LlamaForCausalLM.from_pretrained(tiny_model, dtype=getattr(torch, dtype), attn_implementation="eager")
    assert {parameter.dtype for parameter in model.parameters()} == {getattr(torch, dtype)}
    assert model.config.use_cache is False
    assert model(IDS).past_key_values is None
    torch.testing.assert_close(model(IDS).logits, expected(IDS).logits, rtol=0, atol=0)


def test_an_old_bin_file_loads(tiny_model: Path, copy_of: Path) -> None:
    torch.save(load_file(copy_of / "model.safetensors"), copy_of / "pytorch_model.bin")
    os.remove(copy_of / "model.safetensors")
    torch.testing.assert_close(load(copy_of)(IDS).logits, load(tiny_model)(IDS).logits, rtol=0, atol=0)


def test_a_missing_weight_is_an_error(copy_of: Path) -> None:
    weights = load_file(copy_of / "model.safetensors")
    del weights["model.layers.1.mlp.up_proj.weight"]
    save_file(weights, copy_of / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 weights.*model\.layers\.1\.mlp\.up_proj\.weight"):
        load(copy_of)


def test_a_weight_of_another_shape_is_an_error(copy_of: Path) -> None:
    config = json.loads((copy_of / "config.json").read_text())
    (copy_of / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(ModelError, match="up_proj"):
        load(copy_of)


def test_a_truncated_file_is_an_error(copy_of: Path) -> None:
    os.truncate(copy_of / "model.safetensors", 5000)
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(copy_of)


def test_models_that_cannot_be_trained_are_refused(copy_of: Path) -> None:
    config = json.loads((copy_of / "config.json").read_text())
    quantised = {"quant_method": "gptq", "bits": 4, "group_size": 32}
    (copy_of / "config.json").write_text(json.dumps(config | {"quantization_config": quantised}))
    with pytest.raises(ModelError, match="quantised"):
        load(copy_of)
    (copy_of / "config.json").write_text(json.dumps(config | {"model_type": "bert"}))
    with pytest.raises(ModelError, match="copy"):
        load(copy_of)


def test_an_attention_that_is_not_installed_is_an_error(tiny_model: Path) -> None:
    with pytest.raises(ModelError, match="choose another attn_implementation"):
        load(tiny_model, attn_implementation="flash_attention_2")


def test_custom_code_runs_only_with_trust_remote_code(copy_of: Path) -> None:
    add_custom_code(copy_of)
    with pytest.raises(ModelError, match="trust_remote_code=true"):
        load(copy_of)
    assert type(load(copy_of, trust_remote_code=True)).__name__ == "OwnForCausalLM"


GPT2 = GPT2Config(n_layer=2, n_head=2, n_embd=16, vocab_size=300)  # has Dropout modules
FALCON = FalconConfig(  # reads its rates from the config in each forward
    num_hidden_layers=2,
    num_attention_heads=2,
    hidden_size=16,
    vocab_size=300,
    hidden_dropout=0.5,
    attention_dropout=0.5,
)
MIXTRAL = MixtralConfig(  # keeps its rates as floats on its modules
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    hidden_size=16,
    intermediate_size=16,
    vocab_size=300,
    attention_dropout=0.5,
    router_jitter_noise=0.3,
)
PHIMOE = PhimoeConfig(  # draws its experts at random in training mode, whatever its rates are
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    hidden_size=16,
    intermediate_size=16,
    vocab_size=300,
    num_local_experts=4,
    sliding_window=None,
    router_jitter_noise=0.5,
)


@pytest.mark.parametrize(
    ("architecture", "config"),
    [(GPT2LMHeadModel, GPT2), (FalconForCausalLM, FALCON), (MixtralForCausalLM, MIXTRAL), (PhimoeForCausalLM, PHIMOE)],
)
def test_without_dropout_training_mode_computes_the_same_as_evaluation_mode(architecture: Any, config: Any) -> None:
    torch.manual_seed(0)
    model = architecture(config)
    before = model.eval()(IDS).logits
    model.train()
    assert not torch.equal(model(IDS).logits, model(IDS).logits)
    disable_dropout(model)
    logits = model.train()(IDS).logits
    torch.testing.assert_close(logits, before, rtol=0, atol=0)
    torch.testing.assert_close(logits, model.eval()(IDS).logits, rtol=0, atol=0)


def test_evaluation_leaves_the_weights_as_they_are(tmp_path: Path) -> None:
    """Check RWKV, which divides the weights of deeper layers while it is evaluated unless it is told otherwise."""
    shape: dict[str, Any] = {"vocab_size": 260, "hidden_size": 16, "attention_hidden_size": 16, "intermediate_size": 32}
    RwkvForCausalLM(RwkvConfig(**shape, num_hidden_layers=3, rescale_every=1)).save_pretrained(tmp_path)
    model = load(tmp_path)
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    model.eval()(IDS)
    assert all(torch.equal(weight, before[name]) for name, weight in model.state_dict().items())


def test_gradient_checkpointing_does_not_change_the_gradients(tiny_model: Path) -> None:
    grads = []
    for checkpointing in (False, True):
        model = load(tiny_model).train()
        if checkpointing:
            enable_gradient_checkpointing(model)
        model(IDS, labels=IDS).loss.backward()
        grads.append([parameter.grad for parameter in model.parameters()])
    assert model.is_activation_checkpointing
    for plain, recomputed in zip(*grads, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=0, atol=0)


def test_libraries_are_quiet(tiny_model: Path, capfd: pytest.CaptureFixture[str]) -> None:
    hub = logging.getLogger("huggingface_hub")
    before = transformers_logging.get_verbosity(), hub.level
    try:
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            quiet_libraries()
            model = load(tiny_model)
            assert model.is_gradient_checkpointing is False  # a deprecated name that peft still uses
            transformers_logging.get_logger("transformers.anything").warning("noise")
            hub.warning("noise")
        printed = capfd.readouterr()
        assert (printed.out + printed.err, warned) == ("", [])
    finally:
        transformers_logging.set_verbosity(before[0])
        transformers_logging.enable_progress_bar()
        enable_progress_bars()
        hub.setLevel(before[1])
