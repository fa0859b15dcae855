"""Fixtures for comparisons with TRL: a policy, a reference, and the runs of both sides."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.e2e.jobs import write_neighbour
from tests.parity.sides import Sides, pairs


@pytest.fixture(scope="session")
def policy(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model after some training on texts like those of the pairs.

    An untrained model gives all tokens nearly the same probability: its accuracy would be 0 and its entropy constant
    under any formula, so the comparison would prove nothing.
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
    """Both sides of the comparison; raydpo runs are cached by case and options."""
    return Sides(policy, reference, tmp_path_factory.mktemp("sides"))
