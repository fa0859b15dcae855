"""The starter model's tokenizer loses no text, and a prompt's tokens are a prefix of those of prompt and answer."""

from typing import Any

import pytest

from raydpo.demo.facts import dialogues
from raydpo.demo.tokenizer import build_tokenizer

TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {"town": "Zürich"}}}


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return build_tokenizer(2048)


@pytest.mark.parametrize(
    "text", ["", "Grüße, 世界! 👩‍👩‍👧", "  two  spaces\n\n\tand a tab ", "\x00\x7f\u200f\ufeff", "naïve café", "don't"]
)
def test_text_survives_encoding_and_decoding(tokenizer: Any, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_everyday_words_are_single_tokens(tokenizer: Any) -> None:
    assert [len(tokenizer(f" {word}")["input_ids"]) for word in ("people", "because", "think", "water")] == [1] * 4


@pytest.mark.parametrize("answer", ["Yes.", " leading space", "\n\nleading lines", "\tx", ""])
def test_a_prompt_is_a_prefix_of_prompt_and_answer(tokenizer: Any, answer: str) -> None:
    for dialogue in dialogues(5, 0):
        prompt = dialogue.request.messages
        start = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
        turn = {"role": "assistant", "content": answer}
        all_ids = tokenizer.apply_chat_template([*prompt, turn], return_dict=False)
        assert all_ids[: len(start)] == start
        assert all_ids[-1] == tokenizer.eos_token_id
        assert tokenizer.decode(all_ids[len(start) : -1]) == answer


def test_system_tools_and_calls_are_rendered(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": "Rain?"}]},
        {"role": "assistant", "content": None, "tool_calls": [CALL]},
        {"role": "tool", "content": "sunny"},
    ]
    text = tokenizer.apply_chat_template(messages, tools=[TOOL], tokenize=False, add_generation_prompt=True)
    system, user, call, result, generation_prompt = text.split("<|turn|>")[1:]
    assert system.startswith("system<|text|>Be brief.")
    assert '"name": "weather"' in system
    assert user == "user<|text|>Rain?<|end|>"
    assert call.startswith("assistant<|text|><tool_call>")
    assert "Zürich" in call
    assert result == "tool<|text|>sunny<|end|>"
    assert generation_prompt == "assistant<|text|>"
