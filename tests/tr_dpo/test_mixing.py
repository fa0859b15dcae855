"""The new reference is the weighted mean of the old reference and the policy, for full weights and for adapters."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from raydpo.config import AdapterConfig
from raydpo.errors import ModelError
from raydpo.models.adapters import add_lora
from raydpo.models.export import ExportTarget
from raydpo.models.loading import load_causal_lm, load_tokenizer
from raydpo.models.source import resolve_model
from raydpo.tr_dpo.mixing import StoredWeights, check_mixable, read_terms, write_mixed_adapter, write_mixed_model
from tests.models.bases import IDS, make_base
from tests.models.merged import merged_weights
from tests.models.partitioned import Partitioned, no_gather

ALPHA = 0.3


def perturb(model: torch.nn.Module, seed: int) -> None:
    """Change the trainable weights randomly, by more than training would."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn_like(parameter))


def target_in(folder: Path, base: Path) -> ExportTarget:
    source = resolve_model(str(base), None)
    return ExportTarget(str(folder), source, load_tokenizer(source, trust_remote_code=False), is_main=True)


def load(folder: Path | str) -> Any:
    return AutoModelForCausalLM.from_pretrained(folder).eval()


def mixture(old: dict[str, Tensor], new: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: (1 - ALPHA) * old[name] + ALPHA * new[name] for name in old}


@pytest.mark.parametrize("architecture", ["llama", "llama-tied", "mixtral"])
@pytest.mark.parametrize("partitioned", [False, True])
def test_full_weights_are_mixed(architecture: str, partitioned: bool, tiny_model: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model, architecture)
    expected = dict(load(base).state_dict())
    previous = base
    policy = load_causal_lm(
        resolve_model(str(base), None), dtype="float32", attn_implementation=None, trust_remote_code=False
    )
    for sync in range(2):
        perturb(policy, seed=sync)
        expected = mixture(expected, merged_weights(policy))
        folder = tmp_path / f"reference-{sync}"
        whole_contents = {id(parameter): parameter.data for parameter in policy.parameters()}
        gather = Partitioned(policy).gather if partitioned else no_gather
        write_mixed_model(policy, target_in(folder, base), gather, str(previous), ALPHA)
        for parameter in policy.parameters():
            parameter.data = whole_contents[id(parameter)]
        torch.testing.assert_close(dict(load(folder).state_dict()), expected, rtol=0, atol=1e-6)
        previous = folder


def logits(base: Path, weights: dict[str, Tensor]) -> Tensor:
    model = load(base)
    model.load_state_dict(weights)
    return model(IDS).logits.detach()  # type: ignore[no-any-return]


@pytest.mark.parametrize("initial_reference", ["base", "adapter"])
def test_adapters_are_mixed(initial_reference: str, tiny_model: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model, "llama")
    expected, previous = dict(load(base).state_dict()), None
    if initial_reference == "adapter":  # on other layers and of other ranks and scales than the policy's adapter
        torch.manual_seed(7)
        config = LoraConfig(
            r=3, lora_alpha=5, use_rslora=True, target_modules=["v_proj", "up_proj"], alpha_pattern={r"^.*up_proj": 9}
        )
        other = get_peft_model(load(base), config)
        perturb(other, seed=8)
        other.save_pretrained(str(tmp_path / "first"))
        expected, previous = merged_weights(other), str(tmp_path / "first")
    torch.manual_seed(0)
    policy = add_lora(load(base), AdapterConfig(lora_r=4, lora_alpha=6, lora_target_modules=("q_proj", "up_proj")))
    for sync in range(3):
        perturb(policy, seed=sync)
        expected = mixture(expected, merged_weights(policy))
        folder = tmp_path / f"reference-{sync}"
        write_mixed_adapter(policy, target_in(folder, base), no_gather, previous, ALPHA)
        reference = PeftModel.from_pretrained(load(base), str(folder))
        torch.testing.assert_close(reference(IDS).logits, logits(base, expected), rtol=1e-5, atol=1e-5)
        previous = str(folder)


def test_a_hard_update_replaces_the_reference_by_the_policy(tiny_model: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model, "llama")
    policy = add_lora(load(base), AdapterConfig(lora_r=4, lora_target_modules=("q_proj",)))
    previous = None
    for sync in range(2):
        perturb(policy, seed=sync)
        folder = tmp_path / f"reference-{sync}"
        write_mixed_adapter(policy, target_in(folder, base), no_gather, previous, alpha=1.0)
        reference = PeftModel.from_pretrained(load(base), str(folder))
        torch.testing.assert_close(reference(IDS).logits, logits(base, merged_weights(policy)), rtol=1e-5, atol=1e-5)
        assert reference.peft_config["default"].r == 4
        previous = str(folder)


def test_models_that_cannot_be_mixed_are_refused_before_training(tiny_model: Path, tmp_path: Path) -> None:
    policy = load(make_base(tmp_path / "base", tiny_model, "llama"))
    other = make_base(tmp_path / "other", tiny_model, "llama-deep")
    StoredWeights(str(other)).check(policy)  # accepted: it has more layers, but all weights of the policy are there
    with pytest.raises(ModelError, match=r"has no weight model\.layers\.2\..*leave sync_ref_model out"):
        StoredWeights(str(tmp_path / "base")).check(load(other))
    torch.save(policy.state_dict(), tmp_path / "base" / "pytorch_model.bin")
    (tmp_path / "base" / "model.safetensors").unlink()
    with pytest.raises(ModelError, match=r"not safetensors.*save that model again"):
        StoredWeights(str(tmp_path / "base"))
    with pytest.raises(ModelError, match=r"other weights, first .*lora_magnitude_vector.*DoRA"):
        check_mixable(add_lora(policy, AdapterConfig(lora_target_modules=("q_proj",), use_dora=True)))
    biased = get_peft_model(load(other), LoraConfig(target_modules=["q_proj"], lora_bias=True))
    with pytest.raises(ModelError, match=r"other weights, first .*lora_B\.bias"):
        check_mixable(biased)
    biased.save_pretrained(str(tmp_path / "biased"))
    with pytest.raises(ModelError, match=r"more than the two factors of LoRA"):
        read_terms(str(tmp_path / "biased"))
