"""Token ids of rows with images: those that the model's own processor gives, and those of TRL."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from raydpo.blocks.schema import TokenizedPair
from raydpo.data.images import store
from raydpo.data.tokenization import Truncation
from tests.data.images.models import Case, image, row
from tests.data.images.processors import KINDS

each_kind = pytest.mark.parametrize("kind", KINDS)

ROWS = [
    row("What is this?", images=["a.png"]),
    row("Which is wider?", images=["a.png", "b.png"]),
    image("Look at ", None, " and then at\n", None, ": ", images=["b.png", "a.png"]),
    {
        "prompt": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": [{"type": "text", "text": "Hi "}, {"type": "image"}]},
            {"role": "assistant", "content": "Hello."},
            {"role": "user", "content": "And what is it?"},
        ],
        "chosen": [{"role": "assistant", "content": "A cat."}],
        "rejected": [{"role": "assistant", "content": "A dog!"}],
        "images": ["b.png"],
    },
    row("No picture here.", images=[]),
]


def with_parts(example: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the prompt of a row with images as parts, as the documentation of transformers has it."""
    messages = copy.deepcopy(example["prompt"])
    has_parts = any(isinstance(message["content"], list) for message in messages)
    for message in messages:
        if isinstance(message["content"], str):
            message["content"] = [{"type": "text", "text": message["content"]}]
    if not has_parts:
        user = next(message for message in messages if message["role"] == "user")
        user["content"] = [{"type": "image"} for _ in example["images"]] + user["content"]
    return messages


def opened(case: Case, example: dict[str, Any]) -> list[Image.Image]:
    return [Image.open(case.folder / name) for name in example["images"]]


def processed(case: Case, text: str, pictures: list[Image.Image]) -> dict[str, Any]:
    processor = case.tiny.processor
    found: dict[str, Any] = processor(
        text=[text], images=[pictures] if pictures else None, add_special_tokens=False, return_tensors="np"
    )
    return found


@each_kind
def test_ids_are_those_of_the_processor(tmp_path: Path, kind: str) -> None:
    case = Case(tmp_path / "case", kind)
    for example, pair in zip(ROWS, case.pairs(ROWS), strict=True):
        prompt, pictures = with_parts(example), opened(case, example)
        text = case.tiny.processor.apply_chat_template(prompt, add_generation_prompt=True)
        assert pair.prompt_ids.tolist() == processed(case, text, pictures)["input_ids"][0].tolist()
        for side, ids in (("chosen", pair.chosen_ids), ("rejected", pair.rejected_ids)):
            text = case.tiny.processor.apply_chat_template([*prompt, *example[side]])
            whole = processed(case, text, pictures)["input_ids"][0].tolist()
            assert [*pair.prompt_ids.tolist(), *ids.tolist()] == whole
        assert len(pair.images) == len(pictures)
        count = np.count_nonzero(pair.prompt_ids == case.tiny.image_token_id)
        assert (count > 0) == bool(pictures)


@each_kind
def test_the_store_has_what_the_processor_makes_of_each_image_alone(tmp_path: Path, kind: str) -> None:
    case = Case(tmp_path / "case", kind)
    (pair,) = case.pairs([image(None, " and ", None, images=["a.png", "b.png"])])
    for digest, name in zip(pair.images, ("a.png", "b.png"), strict=True):
        theirs = processed(case, case.tiny.image_token, [Image.open(case.folder / name)])
        ours = store.read(str(case.folder / "cache"), digest)
        assert set(ours) == {name for name in theirs if name.startswith(("pixel_", "image_"))}
        for key, values in ours.items():
            np.testing.assert_array_equal(values, np.asarray(theirs[key]))
            assert values.dtype == np.asarray(theirs[key]).dtype


@each_kind
def test_ids_are_those_of_trl(tmp_path: Path, kind: str) -> None:
    trainer = pytest.importorskip("trl.trainer.dpo_trainer", reason="trl is not installed")
    case = Case(tmp_path / "case", kind)
    examples = ROWS[:4]
    given = [{**copy.deepcopy(example), "images": opened(case, example)} for example in examples]
    for example in given:  # TRL takes either parts with places for images, or texts
        has_parts = any(isinstance(message["content"], list) for message in example["prompt"])
        for message in example["prompt"] if has_parts else ():
            if isinstance(message["content"], str):
                message["content"] = [{"type": "text", "text": message["content"]}]
    batch = trainer.DataCollatorForVisionPreference(case.tiny.processor)(given)
    ids, mask = batch["input_ids"], batch["attention_mask"].bool()
    theirs = [row[kept].tolist() for row, kept in zip(ids, mask, strict=True)]
    pairs = case.pairs(examples)
    assert theirs == [whole(pair, pair.chosen_ids) for pair in pairs] + [
        whole(pair, pair.rejected_ids) for pair in pairs
    ]


def whole(pair: TokenizedPair, completion: Any) -> list[int]:
    return [*pair.prompt_ids.tolist(), *completion.tolist()]


@each_kind
def test_text_with_the_image_token_is_text(tmp_path: Path, kind: str) -> None:
    case = Case(tmp_path / "case", kind)
    prompt = f"Picture: {case.tiny.image_token} is"
    (pair,) = case.pairs([{"prompt": prompt, "chosen": " a cat", "rejected": " a dog", "image": "b.png"}])
    with_bos = case.tiny.processor(text=[prompt], images=[Image.open(case.folder / "b.png")], return_tensors="np")
    assert pair.prompt_ids.tolist() == with_bos["input_ids"][0].tolist()
    assert case.tokenizer.decode(pair.chosen_ids) == f" a cat{case.tokenizer.eos_token}"


@each_kind
def test_masks_of_assistant_turns_stand_behind_expanded_images(tmp_path: Path, kind: str) -> None:
    case = Case(tmp_path / "case", kind)
    turns = [
        {"role": "assistant", "content": "A cat."},
        {"role": "user", "content": "Really?"},
        {"role": "assistant", "content": "Yes."},
    ]
    example = {**row("What is it?", images=["b.png", "a.png"]), "chosen": turns}
    (pair,) = case.pairs([example], assistant_only=True)
    assert pair.chosen_loss_mask is not None
    kept = case.tokenizer.decode(pair.chosen_ids[pair.chosen_loss_mask])
    assert "A cat." in kept
    assert "Yes." in kept
    assert "Really" not in kept


def test_truncation_never_cuts_an_image(tmp_path: Path) -> None:
    case = Case(tmp_path / "case", "qwen2_vl")
    example = image("A long beginning of a question about ", None, "?", images=["a.png"])
    (pair,) = case.pairs([example])
    start = int(np.flatnonzero(pair.prompt_ids == case.tiny.image_token_id)[0])
    behind = len(pair.prompt_ids) - start
    (kept,) = case.pairs([example], truncation=Truncation(max_prompt_length=behind))
    assert kept.prompt_ids.tolist() == pair.prompt_ids[start:].tolist()
    answer = max(len(pair.chosen_ids), len(pair.rejected_ids))
    for truncation in (
        Truncation(max_prompt_length=behind - 1),
        Truncation(max_length=behind + answer - 1, truncation_mode="keep_end"),
    ):
        outcome = case.outcome(case.write([example]), truncation=truncation)
        assert outcome.bad_reasons == {"image cut off": 1}
        assert f"an image begins at token {start}" in case.reasons()[0]
