"""Token ids by TRL's rules, checked by hand on small cases; tests/parity compares them with those of TRL."""

import json
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerFast

from raydpo.data.dialects.pair import Pair, RowError
from raydpo.data.tokenization import EncodedPair, Truncation, tokenize

USER = {"role": "user", "content": "hello world"}
YES, NO = {"role": "assistant", "content": "hello"}, {"role": "assistant", "content": "no world"}


def encode(tokenizer: PreTrainedTokenizerFast, pair: Pair) -> EncodedPair:
    (result,) = tokenize(tokenizer, [pair])
    assert isinstance(result, EncodedPair)
    return result


def parts(tokenizer: PreTrainedTokenizerFast, pair: Pair) -> tuple[str, str, str, str]:
    """Return prompt, chosen, rejected and dropped tail, decoded to text."""
    result = encode(tokenizer, pair)
    ids = (result.prompt_ids, result.chosen_ids, result.rejected_ids, result.dropped_tail)
    return tuple(tokenizer.decode(part.tolist()) for part in ids)  # type: ignore[return-value]


def test_text_gets_an_eos_token_unless_it_has_one(text_tokenizer: PreTrainedTokenizerFast) -> None:
    assert parts(text_tokenizer, Pair("hi:", " yes", " no<eos>")) == ("hi:", " yes<eos>", " no<eos>", "")


def test_conversations_end_where_the_template_ends(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    prompt = "<|user|>hello world<|end|><|assistant|>"
    assert parts(chat_tokenizer, Pair([USER], [YES], [NO])) == (prompt, "hello<|end|>", "no world<|end|>", "")


def test_special_tokens_of_the_tokenizer_are_added_to_text_only(bos_tokenizer: PreTrainedTokenizerFast) -> None:
    assert parts(bos_tokenizer, Pair("hi", " a", " b"))[0] == "<bos>hi"
    assert parts(bos_tokenizer, Pair("", "a", "b")) == ("<bos>", "a<eos>", "b<eos>", "")
    bos_tokenizer.chat_template = "{% for m in messages %}{{ m.content }}|{% endfor %}"
    try:
        assert parts(bos_tokenizer, Pair([USER], [YES], [NO]))[0] == "hello world|"
    finally:
        bos_tokenizer.chat_template = None


@pytest.mark.parametrize(
    ("pair", "expected"),
    [
        # "he" + "llo" merge to "hello", so "he" is not a token of prompt + chosen and moves to both completions
        (Pair("say he", "llo", "y"), ("say ", "hello<eos>", "hey<eos>", "he")),
        # only one completion merges, but both begin at the same token
        (Pair("a world b", "lue", "oth"), ("a world", " blue<eos>", " both<eos>", " b")),
    ],
)
def test_tokens_that_merge_across_the_boundary(
    text_tokenizer: PreTrainedTokenizerFast, pair: Pair, expected: tuple[str, ...]
) -> None:
    assert parts(text_tokenizer, pair) == expected
    result = encode(text_tokenizer, pair)
    for completion, ids in ((pair.chosen, result.chosen_ids), (pair.rejected, result.rejected_ids)):
        all_ids = text_tokenizer(f"{pair.prompt}{completion}<eos>")["input_ids"]
        assert [*result.prompt_ids, *ids] == all_ids


def test_tools_and_template_arguments_reach_the_template(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    prompt = parts(chat_tokenizer, Pair([USER], [YES], [NO], tools, {"style": "curt"}))[0]
    assert prompt.startswith(f"<|tools|>{json.dumps(tools)}<|style|>curt<|user|>")


def test_errors_affect_only_their_row(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    good = Pair([USER], [YES], [NO])
    forbidden = Pair([{"role": "forbidden", "content": "x"}], [YES], [NO])
    reserved = Pair([USER], [YES], [NO], None, {"tokenize": False})
    blank = Pair("", "a", "b")
    results = list(tokenize(chat_tokenizer, [good, forbidden, Pair("x", "y", "z"), good, reserved, blank, good]))
    assert [isinstance(result, EncodedPair) for result in results] == [True, False, True, True, False, False, True]
    assert str(results[1]) == "refused by the chat template: TemplateError: no such role"
    assert (
        str(results[4])
        == "wrong chat_template_kwargs: ['tokenize'] are not variables of the chat template; remove them"
    )
    assert str(results[5]).startswith("no prompt: ")


def test_pairs_keep_their_order_and_number_over_batches(text_tokenizer: PreTrainedTokenizerFast) -> None:
    pairs = [Pair(f"{i}:", f" {i}", " no") for i in range(1000)]
    results = list(tokenize(text_tokenizer, pairs))
    assert [text_tokenizer.decode(result.chosen_ids.tolist()) for result in results] == [
        f" {i}<eos>" for i in range(1000)
    ]  # type: ignore[union-attr]
    assert list(tokenize(text_tokenizer, [])) == []


def tokenized(prompt: int, chosen: int, rejected: int) -> EncodedPair:
    """Return a pair whose ids show their position: prompt ids start at 0, chosen at 100, rejected at 200."""
    ids = [
        np.arange(start, start + count, dtype=np.int32)
        for start, count in ((0, prompt), (100, chosen), (200, rejected))
    ]
    return EncodedPair(*ids, dropped_tail=np.zeros(0, dtype=np.int32))


def truncated(pair: EncodedPair, **options: Any) -> list[list[int]]:
    result = Truncation(**options).apply(pair)
    return [result.prompt_ids.tolist(), result.chosen_ids.tolist(), result.rejected_ids.tolist()]


def test_truncation_by_mode_and_limits() -> None:
    pair = tokenized(4, 3, 5)
    assert (
        truncated(pair) == truncated(pair, max_length=9) == [[0, 1, 2, 3], [100, 101, 102], [200, 201, 202, 203, 204]]
    )
    assert truncated(pair, max_length=6) == [[0, 1, 2, 3], [100, 101], [200, 201]]
    assert truncated(pair, max_length=7, truncation_mode="keep_end") == [
        [2, 3],
        [100, 101, 102],
        [200, 201, 202, 203, 204],
    ]
    assert truncated(pair, max_prompt_length=2) == [[2, 3], [100, 101, 102], [200, 201, 202, 203, 204]]
    assert truncated(pair, max_prompt_length=2, max_length=4) == [[2, 3], [100, 101], [200, 201]]


@pytest.mark.parametrize(
    ("pair", "options", "reason"),
    [
        (
            tokenized(4, 3, 5),
            {"max_length": 4},
            "prompt too long: its 4 tokens leave no room for a completion in max_length=4",
        ),
        (tokenized(4, 3, 5), {"max_length": 5, "truncation_mode": "keep_end"}, "completion too long: its 5 tokens"),
    ],
)
def test_truncation_that_leaves_nothing_is_refused(pair: EncodedPair, options: dict[str, Any], reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        Truncation(**options).apply(pair)


def test_completions_that_are_equal_after_truncation_are_refused(text_tokenizer: PreTrainedTokenizerFast) -> None:
    pair = encode(text_tokenizer, Pair("p", "same start, then this", "same start, then that"))
    with pytest.raises(
        RowError, match="chosen and rejected are the same: their tokens are identical after truncation to max_length=6"
    ):
        Truncation(max_length=6).apply(pair)
    assert Truncation(max_length=100).apply(pair).length == pair.length
