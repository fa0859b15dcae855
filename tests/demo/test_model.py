"""The starter model is built once, completely and reproducibly; the judge uses its chat format and loads adapters."""

from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from raydpo.demo.facts import dialogues
from raydpo.demo.judge import assess
from raydpo.demo.model import Recipe, ensure_starter

RECIPE = Recipe(hidden_size=16, heads=2, layers=1, steps=3, batch_size=4, dialogues=20)
Steps = list[tuple[int, int]]


@pytest.fixture(scope="module")
def starter(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Steps]:
    """Return the folder of a starter model of three steps, and the steps that were reported while it was trained."""
    reported: Steps = []
    folder = ensure_starter(str(tmp_path_factory.mktemp("starters")), lambda *step: reported.append(step), RECIPE)
    return folder, reported


def test_a_starter_is_built_once_and_completely(starter: tuple[str, Steps]) -> None:
    folder, reported = starter
    assert reported == [(1, 3), (2, 3), (3, 3)]
    cache = Path(folder).parent
    again: Steps = []
    assert ensure_starter(str(cache), lambda *step: again.append(step), RECIPE) == folder
    assert again == []
    assert [path.name for path in cache.iterdir()] == [Path(folder).name]


def test_the_same_recipe_gives_the_same_weights(starter: tuple[str, Steps], tmp_path: Path) -> None:
    again = ensure_starter(str(tmp_path), lambda *_: None, RECIPE)
    weights, others = (AutoModelForCausalLM.from_pretrained(folder).state_dict() for folder in (starter[0], again))
    assert all(torch.equal(weights[name], others[name]) for name in weights)


def test_a_starter_ends_turns_with_its_eos_token_and_takes_long_prompts(starter: tuple[str, Steps]) -> None:
    tokenizer, model = AutoTokenizer.from_pretrained(starter[0]), AutoModelForCausalLM.from_pretrained(starter[0])
    assert GenerationConfig.from_pretrained(starter[0]).eos_token_id == tokenizer.eos_token_id
    ids = tokenizer("The quick brown fox, he said, is not what it used to be. " * 100, return_tensors="pt")["input_ids"]
    assert ids.shape[1] >= 1024
    assert model(input_ids=ids[:, :1024]).logits.isfinite().all()


def test_the_judge_is_reproducible_and_loads_an_adapter(starter: tuple[str, Steps], tmp_path: Path) -> None:
    folder, held_out = starter[0], dialogues(6, 1, "held_out")
    assessment = assess(folder, held_out, 0)
    assert assess(folder, held_out, 0) == assessment
    assert assessment.greedy.well_formed == 0.0  # after three steps the model has learnt nothing
    adapter = get_peft_model(AutoModelForCausalLM.from_pretrained(folder), LoraConfig(task_type="CAUSAL_LM"))
    adapter.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(folder).save_pretrained(tmp_path)
    assert assess(str(tmp_path), held_out, 0) == assessment  # a new adapter changes nothing
