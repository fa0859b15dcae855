"""The option chat_template: a chat template that replaces the one that the tokenizer comes with."""

from pathlib import Path

from jinja2 import TemplateSyntaxError
from transformers.utils.chat_template_utils import _compile_jinja_template

from raydpo.errors import ConfigError

_JINJA = ("{{", "{%", "{#")


def read_chat_template(option: str | None) -> str | None:
    """Return the Jinja text that the option is, or that the file of this path holds; None if the option is unset.

    Raises ConfigError where there is no such file, or the text is no template that transformers compiles.
    """
    if option is None:
        return None
    text, where = option, "chat_template"
    if not any(sign in option for sign in _JINJA):
        path = Path(option).expanduser()
        where = f"chat_template={option}"
        if not path.is_file():
            raise ConfigError(f"{where} is neither Jinja text nor a file; give the path of a file that exists")
        try:
            text = path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"{where} cannot be read: {error}; give a text file with a Jinja template") from error
    try:
        _compile_jinja_template(text)
    except TemplateSyntaxError as error:
        raise ConfigError(f"{where} is not a Jinja template: line {error.lineno}: {error}; correct it") from error
    return text
