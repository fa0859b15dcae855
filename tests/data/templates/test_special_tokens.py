"""Text that holds its own BOS and EOS gets no second one; parity with TRL by add_special_tokens=always."""

import pytest
from tokenizers import processors
from transformers import PreTrainedTokenizerFast

from raydpo.data.dialects.pair import Pair
from raydpo.data.templates.text_options import TextOptions
from raydpo.data.tokenization import EncodedPair, tokenize
from tests.data.templates.samples import CHATML
from tests.data.tokenizers import build_tokenizer

ALWAYS = TextOptions(add_special_tokens="always")


def with_eos(template: str | None = None) -> PreTrainedTokenizerFast:
    """Return a tokenizer that puts BOS in front of every text and EOS behind it."""
    tokenizer = build_tokenizer(template, bos=True)
    ids = [(token, tokenizer.convert_tokens_to_ids(token)) for token in ("<bos>", "<eos>")]
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=ids
    )
    return tokenizer


def parts(tokenizer: PreTrainedTokenizerFast, pair: Pair, options: TextOptions | None = None) -> tuple[str, ...]:
    (found,) = tokenize(tokenizer, [pair], options)
    assert isinstance(found, EncodedPair), found
    return tuple(tokenizer.decode(ids.tolist()) for ids in (found.prompt_ids, found.chosen_ids, found.rejected_ids))


def is_told_of(tokenizer: PreTrainedTokenizerFast, pair: Pair, options: TextOptions | None = None) -> bool:
    (found,) = tokenize(tokenizer, [pair], options)
    assert isinstance(found, EncodedPair), found
    return any(remark.topic == "own special tokens" for remark in found.remarks)


def test_text_with_its_own_special_tokens_has_one_of_each() -> None:
    tokenizer = build_tokenizer(CHATML, bos=True)
    rendered = Pair("<bos><|user|>hello<|end|>\n", "yes<|end|>\n", "no<eos>\n")
    assert parts(tokenizer, rendered) == ("<bos><|user|>hello<|end|>\n", "yes<|end|>\n", "no<eos>\n")
    assert is_told_of(tokenizer, rendered)
    trl = ("<bos><bos><|user|>hello<|end|>\n", "yes<|end|>\n<eos>", "no<eos>\n<eos>")
    assert parts(tokenizer, rendered, ALWAYS) == trl
    assert not is_told_of(tokenizer, rendered, ALWAYS)


def test_an_end_of_turn_counts_only_where_the_template_writes_it() -> None:
    """Without a chat template, nothing says that `<|end|>` ends a turn."""
    assert parts(build_tokenizer(None), Pair("q", " yes<|end|>", " no")) == ("q", " yes<|end|><eos>", " no<eos>")
    plain = build_tokenizer("{% for m in messages %}{{ m.content }}.{% endfor %}")  # a full stop may end any text
    assert parts(plain, Pair("q", " yes.", " no")) == ("q", " yes.<eos>", " no<eos>")


@pytest.mark.parametrize("options", [TextOptions(), ALWAYS])
def test_ordinary_text_has_the_special_tokens_of_the_tokenizer(options: TextOptions) -> None:
    tokenizer = build_tokenizer(CHATML, bos=True)
    assert parts(tokenizer, Pair("hi", " a", " b<eos>"), options) == ("<bos>hi", " a<eos>", " b<eos>")
    assert parts(tokenizer, Pair("", "a", "<bos>b"), TextOptions()) == ("<bos>", "a<eos>", "b<eos>")
    assert not is_told_of(tokenizer, Pair("hi", " a", " b<eos>"), options)


def test_a_tokenizer_that_ends_every_text_does_not_end_the_prompt() -> None:
    assert parts(with_eos(), Pair("hi", " a", " b<eos>")) == ("<bos>hi", " a<eos>", " b<eos>")
    assert parts(with_eos(), Pair("<bos>hi", " a", " b<eos>")) == ("<bos>hi", " a<eos>", " b<eos>")
    assert parts(with_eos(), Pair("hi", " a", " b"), ALWAYS) == ("<bos>hi", " a<eos><eos>", " b<eos><eos>")
