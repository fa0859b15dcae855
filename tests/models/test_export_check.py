"""An export is loaded anew and compared with the policy; one that is not the trained model is an error."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from raydpo.config import AdapterConfig
from raydpo.errors import ModelError
from raydpo.models.adapters import add_lora
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.export import ExportTarget, export_adapter, export_model
from raydpo.models.export_check import ExportCheck, Exported, check_export, trained_logps
from raydpo.models.loading import load_causal_lm, load_tokenizer
from raydpo.models.source import resolve_model
from tests.models.bases import make_base
from tests.models.partitioned import no_gather


class Export:
    """A trained policy, and its export in a folder."""

    def __init__(self, base: Path, out: Path, *, adapter: bool, dtype: str = "float32") -> None:
        source = resolve_model(str(base), None)
        model: Any = load_causal_lm(source, dtype=dtype, attn_implementation=None, trust_remote_code=False)
        if adapter:
            model = add_lora(model, AdapterConfig(lora_r=4, lora_dropout=0.0))
        torch.manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.add_(0.1 * torch.randn_like(parameter))
        self._policy = CompletionLogps(model, shares=False)
        self._trained = trained_logps(self._policy, self._policy)
        target = ExportTarget(str(out), source, load_tokenizer(source, trust_remote_code=False), is_main=True)
        (export_adapter if adapter else export_model)(model, target, no_gather)
        self._exported = Exported(str(out), source, adapter, dtype, trust_remote_code=False)

    def check(self, free: int = 2**40) -> ExportCheck:
        return check_export(self._exported, self._trained, self._policy.causal_lm, free_bytes=lambda: free)


@pytest.mark.parametrize("adapter", [False, True])
@pytest.mark.parametrize(
    ("architecture", "dtype"), [("llama-tied", "float32"), ("mixtral", "float32"), ("llama", "bfloat16")]
)
def test_an_export_has_the_log_probs_of_the_policy(
    architecture: str, dtype: str, adapter: bool, tiny_model: Path, tmp_path: Path
) -> None:
    base = make_base(tmp_path / "base", tiny_model, architecture)
    check = Export(base, tmp_path / "out", adapter=adapter, dtype=dtype).check()
    assert check.loaded == "whole"
    assert check.gap is not None
    assert check.tolerance is not None
    assert check.gap < (1e-5 if dtype == "float32" else 0.02) <= check.tolerance + 1e-4


@pytest.mark.parametrize("adapter", [False, True])
def test_an_export_with_other_weights_is_an_error(adapter: bool, tiny_model: Path, tmp_path: Path) -> None:
    export = Export(make_base(tmp_path / "base", tiny_model, "llama"), tmp_path / "out", adapter=adapter)
    path = tmp_path / "out" / ("adapter_model.safetensors" if adapter else "model.safetensors")
    weights = load_file(path)
    name = next(name for name in weights if "q_proj" in name)
    save_file(weights | {name: weights[name] * 1.5}, path, metadata={"format": "pt"})
    kind = "adapter" if adapter else "model"
    with pytest.raises(ModelError, match=rf"the {kind} in .*out, loaded anew, gives other log-probs .*are kept.*again"):
        export.check()
    assert path.exists()


def test_an_export_that_lacks_weights_is_an_error(tiny_model: Path, tmp_path: Path) -> None:
    export = Export(make_base(tmp_path / "base", tiny_model, "llama"), tmp_path / "out", adapter=False)
    weights = load_file(tmp_path / "out" / "model.safetensors")
    renamed = {f"module.{name}": tensor for name, tensor in weights.items()}
    save_file(renamed, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"have other names than LlamaForCausalLM loads: module\."):
        export.check()
    del weights["model.norm.weight"]
    save_file(weights, tmp_path / "out" / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"lack 1 weights .*model\.norm\.weight"):
        export.check()


@pytest.mark.parametrize("architecture", ["llama-tied", "mixtral"])
def test_a_large_export_is_compared_with_its_config_alone(architecture: str, tiny_model: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", tiny_model, architecture)
    export = Export(base, tmp_path / "out", adapter=False)
    assert export.check(free=1000) == ExportCheck("names and shapes", None, None)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    (tmp_path / "out" / "config.json").write_text(json.dumps(config | {"intermediate_size": 48}))
    with pytest.raises(ModelError, match=r"the weight .* has the shape .*\b32\b.* and not .*\b48\b.*config\.json"):
        export.check(free=1000)
