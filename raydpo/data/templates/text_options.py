"""The options that decide how pairs become text and token ids."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextOptions:
    """The options of the same names in `config.data.DataConfig`, except that the date is resolved here."""

    on_template_loss: str = "quarantine"
    """What happens to a row some of whose words the chat template drops: `quarantine`, or `keep` to train on it."""
    add_special_tokens: str = "auto"
    """With `auto`, text that holds its own BOS or EOS gets no second one; with `always`, it does, as in TRL."""
    chat_template_date: str | None = None
    """Date (YYYY-MM-DD) that chat templates take for today; None: a template that writes the date is refused."""
