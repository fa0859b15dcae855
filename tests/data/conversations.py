"""Conversations whose completions have several turns, and the pieces of text that they are rendered to."""

from typing import Any

from transformers import PreTrainedTokenizerFast

USER = {"role": "user", "content": "hello world"}
Piece = tuple[str, bool]
"""A part of a rendered completion, and whether it is an assistant's turn."""


def turns(*contents: tuple[str, str]) -> list[dict[str, Any]]:
    """Return messages from (role, content)."""
    return [{"role": role, "content": content} for role, content in contents]


CHOSEN = turns(
    ("assistant", "hello"),
    ("user", " blue?"),
    ("assistant", " world \N{GRINNING FACE}"),
    ("tool", "she"),
    ("assistant", "we"),
)
REJECTED = turns(("assistant", "no"), ("user", "why"), ("assistant", "well"))
CHOSEN_PIECES: list[Piece] = [
    ("hello<|end|>", True),
    ("<|user|> blue?<|end|><|assistant|>", False),
    (" world \N{GRINNING FACE}<|end|>", True),
    ("<|tool|>she<|end|><|assistant|>", False),
    ("we<|end|>", True),
]
"""CHOSEN as the template of `tokenizers.TEMPLATE` renders it."""
REJECTED_PIECES: list[Piece] = [
    ("no<|end|>", True),
    ("<|user|>why<|end|><|assistant|>", False),
    ("well<|end|>", True),
]


def ids_and_mask(tokenizer: PreTrainedTokenizerFast, pieces: list[Piece]) -> tuple[list[int], list[bool]]:
    """Return the token ids of the pieces, each tokenized on its own, and whether each is an assistant's.

    The pieces begin and end with special tokens, across which no tokens merge.
    """
    found = [(token, learned) for text, learned in pieces for token in tokenizer(text)["input_ids"]]
    return [token for token, _ in found], [learned for _, learned in found]
