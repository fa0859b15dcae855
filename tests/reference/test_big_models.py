"""References that are too large for one device: spread over several devices, or quantised."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import dispatch_model
from transformers import AutoConfig, LlamaForCausalLM

from raydpo import config
from raydpo.batching.collate import collate
from raydpo.batching.prefix_tree import build_prompt_trees
from raydpo.blocks.block import TokenizedBlock
from raydpo.errors import ConfigError
from raydpo.models.attention.segments import Segments
from raydpo.models.completion_logps import CompletionLogps
from raydpo.models.forward_check import CheckedModel, check_forward
from raydpo.models.loading import load_causal_lm
from raydpo.reference.identity import ReferenceIdentity
from raydpo.reference.scorer import Scorer
from raydpo.reference.store import ReferenceStore
from raydpo.stages.plan import check_quantization
from tests.reference.scoring import make_blocks, spec_of


def test_offloaded_layers_give_the_same_scores(tiny_model: Path, tmp_path: Path) -> None:
    """Use the disk in place of a second GPU: accelerate moves all inputs to these layers in the same way."""
    spec = spec_of(tiny_model)
    tokenized = TokenizedBlock(make_blocks(tmp_path, 1)[0])
    pairs = [tokenized.pair(row) for row in range(len(tokenized))]
    micro_batch = collate(build_prompt_trees(pairs, 10**6), pairs)
    found = []
    for offloaded in (False, True):
        model = load_causal_lm(
            spec.model.source,
            dtype="float32",
            attn_implementation=spec.model.attention.implementation,
            trust_remote_code=False,
        )
        if offloaded:
            on_disk = {"model.layers.1": "disk", "model.norm": "disk"}
            on_cpu = ("model.embed_tokens", "model.rotary_emb", "model.layers.0", "lm_head")
            model = dispatch_model(
                model,
                {**on_disk, **dict.fromkeys(on_cpu, "cpu")},
                main_device="cpu",
                offload_dir=str(tmp_path / "disk"),
            )
        with torch.inference_mode():
            reference = CompletionLogps(model, shares=True)
            found.append(reference(micro_batch)[0])
        check = check_forward(CheckedModel(reference, reference, "float32", trains=False))
        assert (check.layout, check.gap <= check.tolerance / 10) == ("packed", True)
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)


def test_a_reference_that_gives_packed_rows_up_has_the_same_scores(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(self: Segments, sliding_window: int | None) -> None:
        raise TypeError("an argument that no layer expects")

    (block,) = make_blocks(tmp_path, 1)
    found = []
    for layout in ("packed", "padded"):
        if layout == "padded":
            monkeypatch.setattr(Segments, "window", fails)
        scorer = Scorer(spec_of(tiny_model))
        check = scorer.load()
        assert (check.layout, check.fallback is None) == (layout, layout == "packed")
        store = ReferenceStore(str(tmp_path), ReferenceIdentity(layout, "", None, "{}"))
        scorer.score_block(block, store, tokens=256)
        found.append(np.concatenate([store.read(block).pair(row).ref_chosen_logps for row in range(block.pairs)]))
    np.testing.assert_allclose(found[1], found[0], atol=2e-6)


@pytest.mark.parametrize(("quantization", "max_gap"), [("8bit", 0.05), ("4bit", 0.5)])
def test_a_quantised_reference_gives_similar_scores(
    quantization: str, max_gap: float, tiny_model: Path, tmp_path: Path
) -> None:
    pytest.importorskip("bitsandbytes", reason="bitsandbytes is not installed")
    (block,) = make_blocks(tmp_path, 1)
    size = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes quantises blocks of 64 weights
    wide = AutoConfig.from_pretrained(tiny_model, head_dim=16, **size)
    torch.manual_seed(0)
    LlamaForCausalLM(wide).save_pretrained(tmp_path / "wide")
    gaps = []
    for option in (None, quantization):
        scorer = Scorer(replace(spec_of(tmp_path / "wide"), quantization=option))
        scorer.load()
        store = ReferenceStore(str(tmp_path), ReferenceIdentity(str(option), "", None, "{}"))
        assert scorer.score_block(block, store, tokens=256).pairs == block.pairs
        scored = store.read(block)
        gaps.append(torch.cat([torch.tensor(scored.pair(row).ref_chosen_logps) for row in range(block.pairs)]))
    gap = (gaps[1] - gaps[0]).abs().max()
    assert 0 < gap < max_gap


def test_a_missing_bitsandbytes_package_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raydpo.stages.plan.find_spec", lambda name: None)
    check_quantization(config.from_flat({}))
    with pytest.raises(ConfigError, match=r"reference_quantization=8bit .*pip install bitsandbytes"):
        check_quantization(config.from_flat({"reference_quantization": "8bit"}))
