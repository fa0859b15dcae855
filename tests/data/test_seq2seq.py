"""Encoder-decoders read prompt and completion apart, each with the tokenizer's own special tokens, as in TRL 0.11."""

from pathlib import Path

import pytest
from transformers import MBartTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from raydpo.data.dialects.pair import Pair, RowError
from raydpo.data.index.settings_digest import settings_digest
from raydpo.data.remarks import OWN_TOKENS
from raydpo.data.seq2seq import Seq2SeqText, Seq2SeqTruncation, check_targets, tokenize_seq2seq
from raydpo.data.templates.text_options import TextOptions
from raydpo.data.tokenization import EncodedPair, Truncation
from raydpo.data.tokenize_block import BlockRecipe
from raydpo.errors import DataError
from tests.data.seq2seq_tokenizers import BART, BOS_ONLY, NOTHING, T5, build_seq2seq_tokenizer
from tests.data.tokenizers import TEMPLATE

PAIR = Pair("sum: one", "two", "three four")


def encode(
    tokenizer: PreTrainedTokenizerBase,
    pair: Pair,
    *,
    start: int | None = None,
    options: TextOptions | None = None,
    limits: Seq2SeqTruncation | None = None,
) -> EncodedPair:
    (result,) = tokenize_seq2seq(tokenizer, [pair], options or TextOptions(), Seq2SeqText(start))
    if isinstance(result, RowError):
        raise result
    return (limits or Seq2SeqTruncation()).apply(result)


def texts(tokenizer: PreTrainedTokenizerBase, pair: EncodedPair) -> tuple[str, ...]:
    return tuple(str(tokenizer.decode(ids.tolist())) for ids in (pair.prompt_ids, pair.chosen_ids, pair.rejected_ids))


@pytest.mark.parametrize("form", [T5, BART])
def test_ids_are_those_that_the_tokenizer_gives_each_text(form: str) -> None:
    tokenizer = build_seq2seq_tokenizer(form)
    found = encode(tokenizer, PAIR, start=0 if form == T5 else 1)
    words = (str(PAIR.prompt), str(PAIR.chosen), str(PAIR.rejected))
    assert [ids.tolist() for ids in (found.prompt_ids, found.chosen_ids, found.rejected_ids)] == [
        tokenizer(text)["input_ids"] for text in words
    ]
    assert texts(tokenizer, found) == tuple(form.replace(" ", "").replace("$A", text) for text in words)


def test_languages_of_source_and_target_are_the_tokenizers() -> None:
    vocabulary = [(token, 0.0) for token in ("<s>", "<pad>", "</s>", "<unk>")]
    vocabulary += [(letter, -1.0) for letter in "▁abcdefghijklmnopqrstuvwxyz:"]
    tokenizer = MBartTokenizer(vocab=vocabulary, src_lang="en_XX", tgt_lang="ro_RO")
    found = encode(tokenizer, PAIR, limits=Seq2SeqTruncation(5, 5))
    english, romanian = tokenizer.convert_tokens_to_ids(["en_XX", "ro_RO"])
    assert found.prompt_ids.tolist() == [*tokenizer("sum: one")["input_ids"][:3], tokenizer.eos_token_id, english]
    assert found.chosen_ids.tolist()[-2:] == [tokenizer.eos_token_id, romanian]
    assert len(found.rejected_ids) == 5


class Translator(PreTrainedTokenizerFast):
    """A tokenizer that needs a language to encode completions, as that of M2M100 does."""

    tgt_lang = None

    def _switch_to_target_mode(self) -> None:
        {"en": 5}[str(self.tgt_lang)]


def test_a_tokenizer_without_a_language_for_completions_is_an_error(caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(DataError, match=r"tgt_lang=None; set both in its tokenizer_config\.json"):
        check_targets(Translator(tokenizer_object=build_seq2seq_tokenizer(T5).backend_tokenizer))
    check_targets(MBartTokenizer(src_lang="en_XX"))
    assert "completions get the language code of prompts (src_lang=en_XX)" in caplog.text
    caplog.clear()
    check_targets(build_seq2seq_tokenizer(T5))
    assert not caplog.text


def test_the_token_that_the_decoder_starts_from_is_no_label_and_a_completion_ends() -> None:
    gemma, nothing = build_seq2seq_tokenizer(BOS_ONLY), build_seq2seq_tokenizer(NOTHING)
    assert texts(gemma, encode(gemma, PAIR, start=2)) == ("<s>sum: one", "two</s>", "three four</s>")
    assert texts(nothing, encode(nothing, PAIR)) == ("sum: one", "two</s>", "three four</s>")
    always = TextOptions(add_special_tokens="always")  # as in TRL 0.11
    assert texts(gemma, encode(gemma, PAIR, start=2, options=always)) == ("<s>sum: one", "<s>two", "<s>three four")


def test_text_that_holds_special_tokens_gets_no_second_ones() -> None:
    tokenizer = build_seq2seq_tokenizer(BART)
    pair = Pair("<s>hi</s>", "<s> a</s> ", "b</s>")
    found = encode(tokenizer, pair)
    assert texts(tokenizer, found) == ("<s>hi</s>", "<s> a</s>", "<s>b</s>")
    assert [remark.topic for remark in found.remarks] == [OWN_TOKENS]
    always = encode(tokenizer, pair, options=TextOptions(add_special_tokens="always"))
    assert texts(tokenizer, always)[2] == "<s>b</s></s>"


def test_truncation_keeps_the_special_tokens_at_the_ends() -> None:
    tokenizer = build_seq2seq_tokenizer(BART)
    assert texts(tokenizer, encode(tokenizer, PAIR, limits=Seq2SeqTruncation(6, 5))) == (
        "<s>sum:</s>",
        "<s>two</s>",
        "<s>thr</s>",
    )
    ends = encode(tokenizer, PAIR, limits=Seq2SeqTruncation(5, None, "keep_end"))
    assert texts(tokenizer, ends) == ("<s>one</s>", "<s>two</s>", "<s>three four</s>")
    with pytest.raises(RowError, match="identical after truncation to 3"):
        encode(tokenizer, Pair("p", "ab", "ac"), limits=Seq2SeqTruncation(None, 3))


def test_conversations_go_through_the_chat_template() -> None:
    tokenizer = build_seq2seq_tokenizer(T5, TEMPLATE)
    asked, said, other = ({"role": role, "content": text} for role, text in (("user", "q"), ("a", "yes"), ("a", "no")))
    found = encode(tokenizer, Pair([asked], [{**said, "role": "assistant"}], [{**other, "role": "assistant"}]))
    assert texts(tokenizer, found) == ("<|user|>q<|end|><|assistant|>", "yes<|end|>", "no<|end|>")


@pytest.mark.parametrize(
    ("form", "pair", "reason"),
    [
        (T5, Pair("p", "", "b"), "empty completion"),
        (NOTHING, Pair("", "a", "b"), "no prompt"),
        (T5, Pair("p", "a", "b", tools=[{"function": {"name": "find"}}]), "dropped by the chat template"),
        (T5, Pair("p", "a", "\ud83d"), "bad Unicode"),
        (T5, Pair("p", "a", "a</s>"), "the same"),
    ],
)
def test_rows_without_a_pair_have_a_reason(form: str, pair: Pair, reason: str) -> None:
    with pytest.raises(RowError, match=reason):
        encode(build_seq2seq_tokenizer(form), pair)


def test_the_index_tells_the_two_kinds_of_models_apart(tmp_path: Path) -> None:
    tokenizer = build_seq2seq_tokenizer(T5)
    recipes = [
        BlockRecipe(Truncation(), str(tmp_path), str(tmp_path), seq2seq=seq2seq)
        for seq2seq in (None, Seq2SeqText(0), Seq2SeqText(1))
    ]
    assert len({settings_digest(tokenizer, recipe) for recipe in recipes}) == 3
