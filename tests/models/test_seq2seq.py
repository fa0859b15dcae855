"""Encoder-decoders of every family give the log-probs and gradients of their own forward, for each pair alone."""

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForSeq2SeqLM,
    BigBirdPegasusConfig,
    FSMTConfig,
    NllbMoeConfig,
    ProphetNetConfig,
    T5Config,
    WhisperConfig,
)

from raydpo.batching.collate import collate
from raydpo.batching.prefix_tree import PromptTree
from raydpo.config import AdapterConfig
from raydpo.errors import ModelError
from raydpo.models.adapters import add_lora
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.export import ExportTarget, export_adapter, export_model
from raydpo.models.forward_check import CheckedModel, check_forward
from raydpo.models.loading import (
    disable_dropout,
    enable_gradient_checkpointing,
    load_causal_lm,
    load_config,
    load_tokenizer,
)
from raydpo.models.model_flops import flops_model
from raydpo.models.source import ModelSource, resolve_model
from tests.data.seq2seq_tokenizers import T5, build_seq2seq_tokenizer
from tests.models.partitioned import no_gather
from tests.models.seq2seq_models import CORE, MORE, VOCABULARY, build, plain_logps

_draw = np.random.default_rng(0)


def _ids(count: int) -> Any:
    return _draw.integers(5, VOCABULARY, count)


TREES = [
    PromptTree(_ids(5), (_ids(4), _ids(9)), (), (), ()),
    PromptTree(_ids(38), (_ids(17), _ids(1)), (), (), ()),
]
"""A short prompt beside a long one, with completions from one token on."""
BATCH = collate(TREES, pairs=())
families = pytest.mark.parametrize(
    "config",
    [
        *(pytest.param(make, id=name) for name, make in CORE.items()),
        *(pytest.param(make, id=name, marks=pytest.mark.whole) for name, make in MORE.items()),
    ],
)


def expected(model: Any) -> Tensor:
    return torch.cat([plain_logps(model, tree.prompt, ids) for tree in TREES for ids in tree.completions])


def gradients(model: Any, logps: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a sum in which every log-prob has a factor of its own."""
    (logps * torch.linspace(-1, 2, len(logps))).sum().backward()
    return {name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None}


@families
def test_log_probs_and_gradients_are_those_of_the_models_own_forward(config: Callable[[], Any]) -> None:
    model = build(config())
    policy = CompletionLogps(copy.deepcopy(model), shares=False)
    disable_dropout(policy)
    logps = expected(model)
    torch.testing.assert_close(policy.train()(BATCH)[0], logps, rtol=0, atol=1e-5)
    found, wanted = gradients(policy.causal_lm, policy.eval()(BATCH)[0]), gradients(model, logps)
    size = max(float(gradient.abs().max()) for gradient in wanted.values())
    assert found.keys() == wanted.keys()
    assert size > 0.1
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * size, msg=name)
    check = check_forward(CheckedModel(policy, policy, "float32", trains=True))
    assert max(check.gap, check.train_gap or 0.0) < 1e-5


def test_a_prompt_is_encoded_once_for_all_its_completions() -> None:
    model = build(CORE["t5"]())
    calls: list[Any] = []
    model.encoder.register_forward_pre_hook(lambda *call: calls.append(call[2]["input_ids"]), with_kwargs=True)
    same = PromptTree(TREES[0].prompt, (_ids(3),), (), (), ())
    CompletionLogps(model, shares=False)(collate([*TREES, same], pairs=()))
    assert [ids.shape for ids in calls] == [(2, 40)]


def test_a_batch_without_pairs_runs_all_layers() -> None:
    model = build(CORE["bart"]())
    policy = CompletionLogps(model, shares=False)
    outputs = policy(collate([], pairs=(), multiple=8))
    (outputs[0].sum() + 0 * sum(part.sum() for part in outputs)).backward()
    assert len(outputs[0]) == 0
    assert model.model.encoder.layers[0].fc1.weight.grad is not None


def test_gradient_checkpointing_changes_nothing() -> None:
    plain, saving = (CompletionLogps(build(CORE["t5"]()), shares=False).train() for _ in range(2))
    for policy in (plain, saving):
        disable_dropout(policy)
    enable_gradient_checkpointing(saving.causal_lm)
    wanted = gradients(plain.causal_lm, plain(BATCH)[0])
    torch.testing.assert_close(gradients(saving.causal_lm, saving(BATCH)[0]), wanted, rtol=1e-5, atol=1e-6)


def with_dynamic_rope(config: Any) -> Any:
    for side in (config.encoder, config.decoder):
        side.rope_parameters = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}
    return config


@pytest.mark.parametrize(
    ("config", "reason"),
    [
        (lambda: ProphetNetConfig(num_encoder_layers=1), "several tokens at each position"),
        (lambda: BigBirdPegasusConfig(encoder_layers=1), "random blocks"),
        (lambda: WhisperConfig(encoder_layers=1), "AutoModelForSeq2SeqLM does not load it"),
        (lambda: FSMTConfig(encoder_layers=1), "no module of its own"),
        (lambda: NllbMoeConfig(encoder_layers=1), "capacity that depends on the rest of the batch"),
        (lambda: with_dynamic_rope(CORE["t5gemma"]()), "rotary factors depend on the longest row"),
    ],
)
def test_an_encoder_decoder_that_would_be_wrong_is_refused(
    config: Callable[[], Any], reason: str, tmp_path: Path
) -> None:
    config().save_pretrained(tmp_path)
    with pytest.raises(ModelError, match=reason):
        load_config(ModelSource(str(tmp_path), str(tmp_path), None), trust_remote_code=False)


def test_a_model_whose_decoder_has_no_beginning_is_refused() -> None:
    config = CORE["t5"]()
    config.decoder_start_token_id = None
    with pytest.raises(ModelError, match=r"decoder_start_token_id.*config\.json"):
        CompletionLogps(build(config), shares=False)


def write(folder: Path, family: str) -> ModelSource:
    build(CORE[family]()).save_pretrained(folder)
    build_seq2seq_tokenizer(T5).save_pretrained(folder)
    return resolve_model(str(folder), None)


def target(source: ModelSource, folder: Path) -> ExportTarget:
    return ExportTarget(str(folder), source, load_tokenizer(source, trust_remote_code=False), is_main=True)


@pytest.mark.parametrize("family", ["t5", "bart", "t5gemma", "marian"])
def test_an_export_has_the_log_probs_of_the_policy(family: str, tmp_path: Path) -> None:
    source = write(tmp_path / "base", family)
    model: Any = load_causal_lm(source, dtype="float32", attn_implementation=None, trust_remote_code=False)
    policy = CompletionLogps(model, shares=False).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:  # Marian's positions are neither trained nor saved
                parameter.add_(0.05 * torch.randn_like(parameter))
    export_model(model, target(source, tmp_path / "out"), no_gather)
    exported = AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "out").eval()
    torch.testing.assert_close(expected(exported), policy(BATCH)[0], rtol=0, atol=1e-5)


def test_an_adapter_starts_as_its_base_and_is_one_of_sequence_to_sequence_models(tmp_path: Path) -> None:
    source = write(tmp_path / "base", "bart")
    base: Any = load_causal_lm(source, dtype="float32", attn_implementation=None, trust_remote_code=False)
    wanted = expected(base)
    adapted = add_lora(base, AdapterConfig(use_peft=True, lora_dropout=0.0))
    policy = CompletionLogps(adapted, shares=False).eval()
    torch.testing.assert_close(policy(BATCH)[0], wanted, rtol=0, atol=1e-5)
    trained = {name for name, weight in adapted.named_parameters() if weight.requires_grad}
    assert any("encoder_attn" in name for name in trained)
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if name in trained:
                weight.add_(0.1 * torch.randn_like(weight))
    export_adapter(adapted, target(source, tmp_path / "out"), no_gather)
    assert json.loads((tmp_path / "out" / "adapter_config.json").read_text())["task_type"] == "SEQ_2_SEQ_LM"
    loaded = PeftModel.from_pretrained(AutoModelForSeq2SeqLM.from_pretrained(source.folder), tmp_path / "out").eval()
    torch.testing.assert_close(policy(BATCH)[0], expected(loaded.get_base_model()), rtol=0, atol=1e-5)
    assert (expected(loaded.get_base_model()) - wanted).abs().max() > 0.01


@pytest.mark.parametrize("family", ["t5", "bart"])
def test_flops_are_those_that_torch_counts(family: str) -> None:
    config = CORE[family]()
    config._attn_implementation = "eager"  # torch counts only matrix products
    flops, tree = flops_model(config), PromptTree(_ids(16), (_ids(16), _ids(16)), (), (), ())
    policy = CompletionLogps(build(config), shares=False)
    policy(BATCH)  # looks at the head first
    with FlopCounterMode(display=False) as counter:
        policy(collate([tree], pairs=()))
    causal = flops.attention[0][0] * 2 * (16 * 16 - 16 * 17 // 2)  # torch counts the hidden half of causal attention
    # Norms and biases are parameters too, and torch counts no products for them.
    assert flops.forward(tree) + causal == pytest.approx(counter.get_total_flops(), rel=0.06)


def test_t5_small_is_the_sum_of_its_matrices() -> None:
    flops: Any = flops_model(T5Config())
    attention, feed_forward, norm = 4 * 512 * 512, 2 * 512 * 2048, 512
    assert flops.encoder_token == 2 * (6 * (attention + feed_forward + 2 * norm) + norm)
    assert flops.cross_token == 2 * 6 * (attention // 2)
    assert flops.token + flops.cross_token == 2 * (6 * (2 * attention + feed_forward + 3 * norm) + norm)
    assert flops.completion_token == 2 * 512 * 32128
