"""Call a tokenizer's chat template with what one row gives it besides messages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from raydpo.data.dialects.pair import Messages


@dataclass(frozen=True)
class ChatTemplate:
    """The chat template of a tokenizer, with what one row gives it besides messages."""

    tokenizer: PreTrainedTokenizerBase
    tools: list[Any] | None = None
    variables: Mapping[str, Any] = field(default_factory=dict)
    """Further variables of the template; `chat_template` replaces the template itself."""

    @property
    def text(self) -> str:
        """The source of the template that these tools and variables choose."""
        return str(self.tokenizer.get_chat_template(self.variables.get("chat_template"), self.tools))

    def render(self, conversations: Sequence[Messages], *, generation_prompt: bool) -> list[str]:
        """Return the text of each conversation. Raises whatever the template raises."""
        rendered = self.tokenizer.apply_chat_template(
            list(conversations),
            tools=self.tools,
            tokenize=False,
            add_generation_prompt=generation_prompt,
            **self.variables,
        )
        return [str(text) for text in rendered]
