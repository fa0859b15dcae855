"""A tiny model of any family, trained a little, as transformers and peft load it from its export."""

from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import torch
from peft import PeftModel
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from raydpo.config import AdapterConfig
from raydpo.models.adapters import add_lora, load_adapter
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.export import ExportTarget, export_adapter, export_model
from raydpo.models.loading import disable_dropout
from raydpo.models.source import resolve_adapter
from tests.models.matrix.harness import Pairs, Subject, own_logps, own_model


def ungathered(_parameters: Any) -> AbstractContextManager[None]:
    """Gather nothing: the weights are whole."""
    return nullcontext()


def _step(model: Any, size: float) -> None:
    """Change each trainable weight at random, as an update would."""
    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.requires_grad:
                weight.add_(size * torch.randn_like(weight))


def _largest(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).abs().max())


def export_gap(
    model_type: str, folder: Path, subject: Subject, pairs: Pairs, tokenizer: PreTrainedTokenizerBase
) -> float:
    """Return the largest difference of a trained policy's log-probs from those that transformers gives its export."""
    policy = subject.policy().eval()
    _step(policy.causal_lm, 0.01)
    with torch.no_grad():
        trained = policy(pairs.batch)[0][pairs.tokens]
        export_model(policy.causal_lm, ExportTarget(str(folder), subject.source, tokenizer, True), ungathered)
        return _largest(own_logps(own_model(model_type, folder), pairs), trained)


def adapter_gaps(
    model_type: str, base: Path, folder: Path, subject: Subject, pairs: Pairs, tokenizer: PreTrainedTokenizerBase
) -> dict[str, float]:
    """Return differences of a LoRA policy: at its start from its base, and trained from its export and its merge.

    Also from its own evaluation, and from the export as scoring workers load it.
    """
    model = add_lora(subject.load(), AdapterConfig(use_peft=True, lora_r=4, lora_alpha=8, lora_dropout=0.0))
    disable_dropout(model)
    policy = CompletionLogps(model, shares=subject.choice.shares).train()
    own = own_model(model_type, base)
    with torch.no_grad():
        start = policy(pairs.batch)[0][pairs.tokens]
        gaps = {"start": _largest(start, own_logps(own, pairs))}
    _step(model, 0.1)
    trained = policy(pairs.batch)[0][pairs.tokens]
    (trained * pairs.weights).sum().backward()
    trained = trained.detach()
    adapted = [weight for weight in model.parameters() if weight.requires_grad]
    gaps["weights without gradient"] = float(sum(weight.grad is None for weight in adapted))
    assert adapted, "no layer was adapted"
    assert _largest(trained, start) > 1e-3, "the adapter has no effect"
    export_adapter(model, ExportTarget(str(folder), subject.source, tokenizer, True), ungathered)
    adapter = load_adapter(subject.load(), resolve_adapter(str(folder)), trainable=False)
    scorer = CompletionLogps(adapter, shares=subject.choice.shares).eval()
    with torch.no_grad():
        gaps["evaluation"] = _largest(policy.eval()(pairs.batch)[0][pairs.tokens], trained)
        gaps["scorer"] = _largest(scorer(pairs.batch)[0][pairs.tokens], trained)
        loaded: Any = PeftModel.from_pretrained(own, str(folder)).eval()
        gaps["export"] = _largest(own_logps(loaded, pairs), trained)
        gaps["merge"] = _largest(own_logps(loaded.merge_and_unload(), pairs), trained)
    return gaps
