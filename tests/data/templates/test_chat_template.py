"""Templates that write the date take it from the options, not from the clock."""

from datetime import datetime
from typing import Any

import pytest

from raydpo.data.dialects.pair import Pair, RowError
from raydpo.data.templates.chat_template import ChatTemplate, writes_date
from raydpo.data.templates.text_options import TextOptions
from raydpo.data.tokenization import EncodedPair, tokenize
from tests.data.templates.samples import CHATML, DATED
from tests.data.tokenizers import build_tokenizer

MESSAGES = [{"role": "user", "content": "hello"}]
DATE = "2025-03-07"


def rendered(template: str, date: str | None = DATE, **variables: Any) -> str:
    tokenizer = build_tokenizer(template)
    (text,) = ChatTemplate(tokenizer, None, variables, date).render([MESSAGES], generation_prompt=False)
    return text


FORMS = "%d %b %Y|%H:%M:%S|%A, %-d %B|%Y-%m-%d|%j%%|%%d is %d|no directive|%B %d, %Y at %I %p".split("|")


@pytest.mark.parametrize("form", FORMS)
def test_the_date_is_formatted_as_strftime_does(form: str) -> None:
    template = "{% set now = strftime_now('" + form + "') %}[{{ now }}]"
    assert rendered(template) == f"[{datetime(2025, 3, 7).strftime(form)}]"


def test_templates_see_that_the_date_can_be_asked_for() -> None:
    assert rendered(DATED).startswith("<|start|>system\nToday Date: 07 Mar 2025, 00:00:00<|end|>\n")
    inside = "{% macro head() %}{{ strftime_now('%Y') }}{% endmacro %}{{ head() }}"
    assert rendered(inside) == "2025"


@pytest.mark.parametrize("start", ["\n", "  {% if true %}", "{#- note #}\n\n", "{%- if true %}", "text\n"])
def test_the_rest_of_the_template_is_rendered_as_before(start: str) -> None:
    """Whitespace at the start of a template is significant, and trimmed by rules that depend on the line."""
    template = (
        start + "a{% if true and start is not defined %}b{% endif %}\nc" + ("{% endif %}" if "if" in start else "")
    )
    dated = template + "{% if false %}{{ strftime_now('%Y') }}{% endif %}"
    assert rendered(dated) == rendered(template)


def test_a_date_of_the_row_wins() -> None:
    assert "Today Date: 1 May 1950<|end|>" in rendered(DATED, date_string="1 May 1950")


def test_a_row_may_bring_a_dated_template() -> None:
    row = Pair(MESSAGES, [{"role": "assistant", "content": "a"}], [{"role": "assistant", "content": "b"}])
    own = Pair(row.prompt, row.chosen, row.rejected, None, {"chat_template": DATED})
    tokenizer = build_tokenizer(CHATML)
    plain, dated = tokenize(tokenizer, [row, own], TextOptions(chat_template_date=DATE))
    assert isinstance(plain, EncodedPair)
    assert isinstance(dated, EncodedPair)
    assert "07 Mar 2025" in tokenizer.decode(dated.prompt_ids.tolist())
    (refused,) = tokenize(tokenizer, [own])
    assert isinstance(refused, RowError)
    assert "set chat_template_date" in str(refused)


def test_only_dated_templates_need_a_date() -> None:
    assert [writes_date(build_tokenizer(template)) for template in (None, CHATML, DATED)] == [False, False, True]
    assert rendered(CHATML, date=None) == rendered(CHATML)
