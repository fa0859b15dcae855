"""Log-probs of a reference that are infinite or not a number: none is stored, and none that was stored is used."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from raydpo.blocks.block import TokenizedBlock, write_scores
from raydpo.errors import ModelError
from raydpo.reference.fingerprint import identify
from raydpo.reference.scorer import Scorer
from raydpo.reference.store import ReferenceStore
from tests.reference.scoring import PAIRS_PER_BLOCK, make_blocks, spec_of


def store_of(model: Path, folder: Path) -> ReferenceStore:
    return ReferenceStore(str(folder), identify(str(model), None, {"dtype": "float32"}))


def test_a_score_that_is_not_finite_is_refused_with_its_row(tiny_model: Path, tmp_path: Path) -> None:
    """Use a model in which one token of a row gives no number."""
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    blocks = make_blocks(tmp_path, 1)
    token_id = int(TokenizedBlock(blocks[0]).pair(4).rejected_ids[2])
    with torch.no_grad():
        model.model.embed_tokens.weight[token_id] = math.nan
    folder = tmp_path / "model"
    model.save_pretrained(folder)
    scorer, store = Scorer(spec_of(folder)), store_of(folder, tmp_path / "cache")
    scorer.load()
    with pytest.raises(ModelError, match=r"rejected completion of row shard-0\.jsonl:5 a log-prob of nan.*dtype"):
        scorer.score_block(blocks[0], store, 256)
    assert store.missing(blocks) == blocks, "nothing is stored"


def test_stored_scores_that_are_not_finite_are_scored_again(tiny_model: Path, tmp_path: Path) -> None:
    blocks = make_blocks(tmp_path, 1)
    scorer, store = Scorer(spec_of(tiny_model)), store_of(tiny_model, tmp_path / "cache")
    scorer.load()
    scorer.score_block(blocks[0], store, 256)
    assert store.missing(blocks) == []
    for value in (math.nan, -math.inf):
        sides = [[np.full(4, -1.0, np.float32) for _ in range(PAIRS_PER_BLOCK)] for _ in range(2)]
        sides[1][3][2] = value
        write_scores(store.url(blocks[0]), *sides)
        assert store.missing(blocks) == blocks
