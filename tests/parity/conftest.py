"""A policy and a reference for comparisons with TRL."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.jobs import write_neighbour
from tests.parity.sides import Sides, pairs


@pytest.fixture(scope="session")
def policy(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model, shown texts like the pairs for a while.

    An untrained one finds all tokens nearly alike: its accuracy would be 0 and its entropy a constant, whatever the
    formula.
    """
    folder = tmp_path_factory.mktemp("policy")
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    model = AutoModelForCausalLM.from_pretrained(tiny_model)
    texts = [f"{row['prompt']}{row[side]}<eos>" for row in pairs(16, seed=1) for side in ("chosen", "rejected")]
    batch = tokenizer(texts, padding=True, return_tensors="pt")
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    for _ in range(40):
        model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def reference(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reference that differs from the policy, so that no log-ratio is 0."""
    return write_neighbour(policy, tmp_path_factory.mktemp("reference"), 0.01)


@pytest.fixture(scope="session")
def sides(policy: Path, reference: Path, tmp_path_factory: pytest.TempPathFactory) -> Sides:
    """Both sides, with what has been run already."""
    return Sides(policy, reference, tmp_path_factory.mktemp("sides"))
