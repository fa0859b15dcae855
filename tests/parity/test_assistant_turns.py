"""Assistant turns found by rendering are those that TRL's templates for training mark with `{% generation %}`."""

import re
from pathlib import Path

import pytest

from raydpo.data.dialects.pair import Pair
from raydpo.data.templates.assistant_spans import with_loss_masks
from raydpo.data.tokenization import EncodedPair, tokenize
from tests.data.conversations import REJECTED, USER, turns
from tests.data.tokenizers import build_tokenizer

trl = pytest.importorskip("trl", reason="needs the extra `parity`")

TEMPLATES = ("cohere", "gemma3", "glm4moe", "lfm2_v2", "llama3", "phi3", "qwen2_5_vl", "qwen3", "qwen3_instruct_2507")
"""Templates whose blocks begin behind the generation prompt in each turn, and end with the turn."""


@pytest.mark.parametrize("name", TEMPLATES)
def test_turns_found_by_rendering_are_those_of_the_blocks(name: str) -> None:
    template = (Path(trl.__file__).parent / "chat_templates" / f"{name}_training.jinja").read_text()
    block = re.compile(r"\{%(-?) *(end)?generation *(-?)%\}")
    assert block.search(template)
    without = block.sub(lambda tag: f"{{%{tag[1]} {'endif' if tag[2] else 'if true'} {tag[3]}%}}", template)
    pair = Pair([USER], REJECTED, turns(("assistant", "no")))
    tokenizer = build_tokenizer(without)
    (encoded,) = tokenize(tokenizer, [pair])
    assert isinstance(encoded, EncodedPair)
    found = with_loss_masks(tokenizer, pair, encoded).chosen_mask
    theirs = build_tokenizer(template).apply_chat_template(
        [USER, *REJECTED], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
    )
    assert found is not None
    assert theirs["input_ids"][len(encoded.prompt_ids) :] == encoded.chosen_ids.tolist()
    assert found.astype(int).tolist() == theirs["assistant_masks"][len(encoded.prompt_ids) :]
