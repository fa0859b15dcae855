"""Call a tokenizer's chat template, with the date that templates take for today frozen."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from transformers import PreTrainedTokenizerBase

from raydpo.data.dialects.pair import Messages, RowError

CALL_ARGUMENTS = frozenset(
    "conversation tools add_generation_prompt continue_final_message tokenize padding truncation max_length "
    "return_tensors return_dict return_assistant_tokens_mask sanitize_control_tokens tokenizer_kwargs".split()
)
"""Parameters of `apply_chat_template` itself, which `chat_template_kwargs` of a row must not set."""

_NOW = "strftime_now"
"""Name under which transformers gives templates a function that formats the present moment."""
_DATES = "raydpo_dates"
_PERCENT = "\ue000"
_DIRECTIVE = re.compile(r"%[-_0^#]?[a-zA-Z%]")
# The line break at the end goes, by the rule trim_blocks, so that the template itself begins at the start of a line.
_FROZEN = (
    f"{{%- macro {_NOW}(format) -%}}{{%- set ns = namespace(text=format) -%}}"
    f"{{%- for directive, value in {_DATES} -%}}{{%- set ns.text = ns.text | replace(directive, value) -%}}"
    "{%- endfor -%}{{- ns.text -}}{%- endmacro %}\n"
)
_REFUSED = (
    f"{{%- macro {_NOW}(format) -%}}"
    "{{- raise_exception('it writes the date; set chat_template_date') -}}{%- endmacro %}\n"
)


def writes_date(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether a chat template of the tokenizer asks for the present moment."""
    return _NOW in str(tokenizer.chat_template or "")


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer, with what one row gives it besides messages."""

    tokenizer: PreTrainedTokenizerBase
    tools: list[Any] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the template; `chat_template` replaces the template itself."""
    date: str | None = None
    """Date (YYYY-MM-DD) whose midnight is the present moment for the template."""

    @property
    def text(self) -> str:
        """The source of the template that these tools and variables choose."""
        return str(self.tokenizer.get_chat_template(self.variables.get("chat_template"), self.tools))

    def render(self, conversations: Sequence[Messages], *, generation_prompt: bool) -> list[str]:
        """Return the text of each conversation. Raises whatever the template raises.

        Where a template that a row brings itself needs too much memory, that is a RowError: no fault of the machine.
        """
        source, variables = self.text, {**self.variables}
        if _NOW in source:
            if self.date is None:
                source = _REFUSED + source
            else:
                variables.setdefault(_DATES, _directives(source, self.date))
                source = _FROZEN + source
        variables["chat_template"] = source
        try:
            rendered = self.tokenizer.apply_chat_template(
                list(conversations),
                tools=self.tools,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **variables,
            )
        except MemoryError as error:
            if "chat_template" not in self.variables:
                raise
            raise RowError("refused by the chat template", "the row's own template takes too much memory") from error
        return [str(text) for text in rendered]


def _directives(source: str, date: str) -> list[list[str]]:
    """Return each strftime directive in a template and its text at midnight of the date, in the order of replacement.

    Templates get data only, no functions of ours: transformers replaces these by placeholders. A percent sign, written
    as two, is out of the way while directives are replaced.
    """
    midnight = datetime.fromisoformat(date)
    found = sorted(set(_DIRECTIVE.findall(source)) - {"%%"}, key=len, reverse=True)
    replaced = [[directive, midnight.strftime(directive)] for directive in found]
    return [["%%", _PERCENT], *replaced, [_PERCENT, "%"]]
