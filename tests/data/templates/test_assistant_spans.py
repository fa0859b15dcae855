"""Which tokens of a completion belong to assistant turns, compared with the words of its turns."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
from tokenizers import processors
from transformers import ByT5Tokenizer, PreTrainedTokenizerFast

from raydpo.data.dialects.pair import Pair, RowError
from raydpo.data.templates.assistant_spans import with_loss_masks
from raydpo.data.templates.text_options import TextOptions
from raydpo.data.tokenization import EncodedPair, Truncation, tokenize
from raydpo.errors import DataError
from tests.data.conversations import CHOSEN, CHOSEN_PIECES, REJECTED, REJECTED_PIECES, USER, ids_and_mask, turns
from tests.data.tokenizers import TEMPLATE, build_tokenizer

YES = turns(("assistant", "hello"))
KEEP = TextOptions(on_template_loss="keep")
PLAIN = (
    "{% for message in messages %}{{ message.role }}: {{ message.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)
"""A template without special tokens, whose generation prompt ends before the space of the turn that follows."""
WITH_BLOCKS = (
    "{% for message in messages %}<|{{ message.role }}|>"
    "{% if message.role == 'assistant' %}{% generation %}{{ message.content }}<|end|>{% endgeneration %}"
    "{% else %}{{ message.content }}<|end|>{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
CLOSED_BY_EOS = TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|>{% else %}<eos>{% endif %}")
OPENS_THINKING = TEMPLATE.replace("<|assistant|>{% endif %}", "<|assistant|><think>{% endif %}")
ASSISTANT_LAST = "loop.last and message['role'] == 'assistant'"
LAST_TURN_THINKS = TEMPLATE.replace(
    "<|{{ message['role'] }}|>",
    "<|{{ message['role'] }}|>{% if " + ASSISTANT_LAST + " %}<think></think>{% endif %}",
)
"""Like Qwen3's: a turn has a block of thinking while it is the last one."""
LAST_TURN_RETURNS = TEMPLATE.replace("<|end|>", "{% if " + ASSISTANT_LAST + " %}<eos>{% else %}<|end|>{% endif %}")
"""The end of a turn depends on what follows."""
RETURNS_UNLESS_ASKED = LAST_TURN_RETURNS.replace(ASSISTANT_LAST, ASSISTANT_LAST + " and not add_generation_prompt")
"""Like gpt-oss's: the last turn ends with EOS instead of the end of a turn, unless another is asked for."""
FORGETS = TEMPLATE.replace(
    "{{ message['content'] }}",
    "{% if message.role == 'user' or " + ASSISTANT_LAST + " %}{{ message.content }}{% endif %}",
)
"""A template that leaves out answers before the last one."""


def masked(tokenizer: Any, pair: Pair, options: TextOptions | None = None) -> EncodedPair:
    (encoded,) = tokenize(tokenizer, [pair], options)
    assert isinstance(encoded, EncodedPair)
    return with_loss_masks(tokenizer, pair, encoded, options)


def learned(tokenizer: PreTrainedTokenizerFast, ids: Any, mask: Any) -> list[str]:
    """Return the text of each run of tokens that are targets."""
    assert mask is not None
    assert len(mask) == len(ids)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], mask.astype(int), [0]])))
    return [tokenizer.decode(ids[start:stop].tolist()) for start, stop in edges.reshape(-1, 2)]


def test_targets_are_the_assistants_turns_with_their_ends(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    pair = masked(chat_tokenizer, Pair([USER], CHOSEN, REJECTED))
    for ids, mask, pieces in (
        (pair.chosen_ids, pair.chosen_mask, CHOSEN_PIECES),
        (pair.rejected_ids, pair.rejected_mask, REJECTED_PIECES),
    ):
        assert mask is not None
        assert (ids.tolist(), mask.tolist()) == ids_and_mask(chat_tokenizer, pieces)


def test_a_single_turn_and_text_have_no_mask(
    chat_tokenizer: PreTrainedTokenizerFast, text_tokenizer: PreTrainedTokenizerFast
) -> None:
    pair = masked(chat_tokenizer, Pair([USER], YES, REJECTED))
    assert pair.chosen_mask is None
    assert pair.rejected_mask is not None
    texts = Pair("a: ", "b\nuser: c\nassistant: d", "e")
    assert masked(text_tokenizer, texts).chosen_mask is None


def test_tools_and_calls_are_rendered_as_for_training(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    call = {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": {"x": 1}}}]}
    chosen = [call, *turns(("tool", "1"), ("assistant", "one"))]
    tools = [{"type": "function", "function": {"name": "f", "parameters": {}}}]
    pair = masked(chat_tokenizer, Pair([USER], chosen, YES, tools, {"style": "curt"}))
    calls = '<|calls|>[{"function": {"name": "f", "arguments": {"x": 1}}}]<|end|>'
    assert learned(chat_tokenizer, pair.chosen_ids, pair.chosen_mask) == [calls, "one<|end|>"]


@pytest.mark.parametrize("trim_offsets", [False, True])
def test_a_token_that_merges_with_the_start_of_a_turn_belongs_to_it(trim_offsets: bool) -> None:
    """The tokens of each turn are those of a completion with this turn alone, spaces and merges included."""
    tokenizer = build_tokenizer(PLAIN)
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=trim_offsets)
    chosen = turns(("assistant", "blue world"), ("user", "world"), ("assistant", "world  "), ("assistant", " "))
    pair = masked(tokenizer, Pair([USER], chosen, turns(("assistant", "no"))))
    assert learned(tokenizer, pair.chosen_ids, pair.chosen_mask) == [" blue world\n", " world  \n", "  \n"]


def test_a_completion_starts_at_the_same_token_with_either_option() -> None:
    """The rejected answer merges with the prompt's end, so that the completions start before it, also the chosen."""
    told = "{% if message.role == 'assistant' %} b{% endif %}{{ message.content }}\n"
    tokenizer = build_tokenizer(
        PLAIN.replace("{{ message.role }}: {{ message.content }}\n", told).replace("assistant:", " b")
    )
    chosen = turns(("assistant", "oth"), ("user", "why"), ("assistant", "we"))
    pair = masked(tokenizer, Pair([USER], chosen, turns(("assistant", "lue"))))
    assert tokenizer.decode(pair.rejected_ids.tolist()) == " blue\n"
    assert learned(tokenizer, pair.chosen_ids, pair.chosen_mask) == [" both\n", "we\n"]


def test_spaces_at_the_end_of_a_block_belong_to_it() -> None:
    tokenizer = build_tokenizer(WITH_BLOCKS.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>"))
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    pair = masked(tokenizer, Pair([USER], turns(("assistant", " we  "), ("user", " "), ("assistant", "no")), YES))
    assert learned(tokenizer, pair.chosen_ids, pair.chosen_mask) == [" we  ", "no"]


def test_generation_blocks_are_used_where_the_template_has_them() -> None:
    tokenizer = build_tokenizer(WITH_BLOCKS)
    pair = masked(tokenizer, Pair([USER], CHOSEN, REJECTED))
    for completion, mask in ((CHOSEN, pair.chosen_mask), (REJECTED, pair.rejected_mask)):
        theirs = tokenizer.apply_chat_template(
            [USER, *completion], tokenize=True, return_dict=True, return_assistant_tokens_mask=True
        )["assistant_masks"]
        assert mask is not None
        assert mask.tolist() == [bool(value) for value in theirs[len(pair.prompt_ids) :]]
    narrow = build_tokenizer(WITH_BLOCKS.replace("<|end|>{% endgeneration %}", "{% endgeneration %}<|end|>"))
    pair = masked(narrow, Pair([USER], CHOSEN, REJECTED))
    assert learned(narrow, pair.rejected_ids, pair.rejected_mask) == ["no", "well"]


@pytest.mark.parametrize(
    ("template", "last"), [(CLOSED_BY_EOS, "well<|end|><eos>"), (RETURNS_UNLESS_ASKED, "well<eos>")]
)
def test_templates_that_end_the_conversation_in_another_way(template: str, last: str) -> None:
    tokenizer = build_tokenizer(template)
    pair = masked(tokenizer, Pair([USER], REJECTED, YES))
    assert learned(tokenizer, pair.chosen_ids, pair.chosen_mask) == ["no<|end|>", last]


@pytest.mark.parametrize("first", ["no", "<table>", "<think>so</think>no"])
def test_a_generation_prompt_that_opens_a_block_of_thinking(first: str) -> None:
    """A later turn starts at the first token that differs from the generation prompt, as a completion does."""
    tokenizer = build_tokenizer(OPENS_THINKING)
    later = turns(("assistant", "he"), ("user", "why"), ("assistant", first))
    alone = masked(tokenizer, Pair([USER], turns(("assistant", first)), turns(("assistant", "<think>we"))))
    pair = masked(tokenizer, Pair([USER], later, YES))
    again = learned(tokenizer, pair.chosen_ids, pair.chosen_mask)[-1]
    (single,) = tokenize(tokenizer, [Pair([USER], turns(("assistant", first)), turns(("assistant", first + "!")))])
    assert isinstance(single, EncodedPair)
    assert again == tokenizer.decode(single.chosen_ids.tolist())
    assert alone.chosen_mask is None


def test_a_template_that_writes_more_into_the_last_turn() -> None:
    tokenizer = build_tokenizer(LAST_TURN_THINKS)
    pair = masked(tokenizer, Pair([USER], CHOSEN, REJECTED))
    assert learned(tokenizer, pair.rejected_ids, pair.rejected_mask) == ["no<|end|>", "<think></think>well<|end|>"]
    assert learned(tokenizer, pair.chosen_ids, pair.chosen_mask)[:2] == [
        "hello<|end|>",
        " world \N{GRINNING FACE}<|end|>",
    ]


@pytest.mark.parametrize("template", [LAST_TURN_RETURNS, FORGETS])
def test_a_template_that_renders_a_turn_by_what_follows_it_is_refused_with_the_remedy(template: str) -> None:
    tokenizer = build_tokenizer(template)
    with pytest.raises(
        RowError, match=r"turns not found: .* turn \d of chosen.* depending on what follows.*loss_on=completion"
    ):
        masked(tokenizer, Pair([USER], CHOSEN, YES), KEEP)
    # A single turn needs no search, and a template with blocks says itself where its turns are.
    assert masked(tokenizer, Pair([USER], YES, turns(("assistant", "no")))).chosen_mask is None
    blocks = build_tokenizer(
        template.replace("<|{{ message['role'] }}|>", "<|{{ message['role'] }}|>{% generation %}").replace(
            "{% endfor %}", "{% endgeneration %}{% endfor %}"
        )
    )
    pair = masked(blocks, Pair([USER], REJECTED, YES), KEEP)
    assert pair.chosen_mask is not None


@pytest.mark.parametrize("content", ["a", None, ["a", {"type": "text", "text": None}, 3], [{"text": {}}]])
@pytest.mark.parametrize("calls", [None, "f", [3], [{"function": None}], [{"function": {"name": ["f"]}}]])
def test_odd_messages_are_refused_as_rows(content: Any, calls: Any) -> None:
    message = {"role": "assistant", "content": content, "tool_calls": calls}
    pair = Pair([USER], [message, *turns(("user", "why"), ("assistant", "no"))], YES)
    tokenizer = build_tokenizer(LAST_TURN_RETURNS)
    for encoded in tokenize(tokenizer, [pair]):
        if isinstance(encoded, EncodedPair):
            with pytest.raises(RowError, match="turns not found"):
                with_loss_masks(tokenizer, pair, encoded)


def test_completions_without_a_token_to_learn_are_refused(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    with pytest.raises(RowError, match="empty completion: rejected has no assistant turn"):
        masked(chat_tokenizer, Pair([USER], YES, turns(("user", "hello"), ("tool", "a"))))
    pair = masked(chat_tokenizer, Pair([USER], turns(("tool", "hello"), ("assistant", "a")), turns(("assistant", "b"))))
    prompt, hidden = len(pair.prompt_ids), len(ids_and_mask(chat_tokenizer, [("hello<|end|><|assistant|>", False)])[0])
    shortest = prompt + hidden + 1
    assert Truncation(max_length=100).apply(pair).chosen_mask is not None
    with pytest.raises(RowError, match=f"empty completion: max_length={shortest - 1} leaves no token of an assistant"):
        Truncation(max_length=shortest - 1).apply(pair)


def test_truncation_cuts_masks_with_their_tokens(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    pair = masked(chat_tokenizer, Pair([USER], CHOSEN, REJECTED))
    ids, mask = ids_and_mask(chat_tokenizer, CHOSEN_PIECES)
    for kept in (1, 2, 3, 10, len(ids)):
        cut = Truncation(max_length=len(pair.prompt_ids) + kept).apply(pair)
        assert cut.chosen_ids.tolist() == ids[:kept]
        assert (cut.chosen_mask is None and all(mask[:kept])) or cut.chosen_mask.tolist() == mask[:kept]  # type: ignore[union-attr]
    longest = pair.length
    cut = Truncation(max_length=longest - 2, truncation_mode="keep_end").apply(pair)
    assert len(cut.prompt_ids) == len(pair.prompt_ids) - 2
    assert cut.chosen_mask is not None
    assert cut.chosen_mask.tolist() == mask


def test_a_tokenizer_that_cannot_place_its_tokens_is_refused(chat_tokenizer: PreTrainedTokenizerFast) -> None:
    slow = ByT5Tokenizer()
    slow.chat_template = TEMPLATE
    with pytest.raises(DataError, match=r"loss_on=assistant .*ByT5Tokenizer.*fast tokenizer"):
        masked(slow, Pair([USER], deepcopy(CHOSEN), YES))
