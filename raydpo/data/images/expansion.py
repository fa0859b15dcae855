"""Place the images of a prompt: a column's among its parts, and the text of each in the place of its token."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from raydpo.data.dialects.images import PLACEHOLDER, in_messages
from raydpo.data.dialects.messages import content_text
from raydpo.data.dialects.pair import ImageExpansion, Messages, Pair, RowError
from raydpo.data.encoding import TokenIds
from raydpo.data.templates.rendered import Rendered

MARK = "<image>"
"""What many data sets write into a text in the place of an image, whatever the model's own token is."""


def placed(pair: Pair, token: str, chat: bool) -> Pair:
    """Return a pair whose prompt has a place for each of its images; `token` is the model's image token.

    A prompt with image parts, or with as many tokens as images, is returned as it is. In a conversation, marks
    (`<image>`) become parts; without any, the images stand at the start of the first user message, as in TRL. Text
    without the token becomes a conversation if there is a chat template (`chat`), which knows how to write an image.
    Raises RowError if there are more or fewer places than images, or none in text.
    """
    count = len(pair.images)
    if isinstance(pair.prompt, str):
        if token in pair.prompt or not chat:
            _check(pair.prompt.count(token), count, token, "; write it where each image stands, or use messages")
            return pair
        prompt: Messages = [{"role": "user", "content": pair.prompt}]
        answers = [[{"role": "assistant", "content": side}] for side in (pair.chosen, pair.rejected)]
        pair = replace(pair, prompt=prompt, chosen=answers[0], rejected=answers[1])
    else:
        prompt = pair.prompt
    if not count or in_messages(prompt):
        return pair
    texts = [content_text(message) for message in prompt]
    tokens, marks = (sum(text.count(sign) for text in texts) for sign in (token, MARK))
    if tokens:
        _check(tokens, count, token)
        return pair
    if marks:
        _check(marks, count, MARK)
        return replace(pair, prompt=[_split(message) for message in prompt])
    return replace(pair, prompt=_at_start(prompt, count))


def _check(places: int, images: int, sign: str, remedy: str = "") -> None:
    if places != images:
        raise RowError("images do not match", f"the prompt has {places} times {sign!r} for {images} images{remedy}")


def _split(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with a part for each mark in its texts."""
    content = message.get("content")
    texts = [content] if isinstance(content, str) else [part["text"] for part in content or ()]
    if not any(MARK in text for text in texts):
        return dict(message)
    parts: list[dict[str, Any]] = []
    for text in texts:
        for number, piece in enumerate(text.split(MARK)):
            parts += [dict(PLACEHOLDER)] if number else []
            parts += [{"type": "text", "text": piece}] if piece else []
    return {**message, "content": parts}


def _at_start(prompt: Messages, count: int) -> Messages:
    first = next((i for i, message in enumerate(prompt) if message["role"] == "user"), None)
    if first is None:
        raise RowError(
            "images do not match", f"the prompt has no user message to which its {count} images could belong"
        )
    content = prompt[first].get("content")
    parts = content if isinstance(content, list) else [{"type": "text", "text": content}] if content else []
    message = {**prompt[first], "content": [*(dict(PLACEHOLDER) for _ in range(count)), *parts]}
    return [*prompt[:first], message, *prompt[first + 1 :]]


def check_free_of(pair: Pair, token: str) -> None:
    """Raise RowError if a pair without images has the image token in its texts, which then stands for no image."""
    sides: list[Any] = [pair.prompt, pair.chosen, pair.rejected]
    texts = [side if isinstance(side, str) else "\n".join(map(content_text, side)) for side in sides]
    if any(token in text for text in texts):
        raise RowError("images do not match", f"the row has the image token {token!r} in its text, and no image")


def expanded(text: str, expansion: ImageExpansion | None) -> str:
    """Return a text of a pair with the text of each image in the place of its token.

    Raises RowError unless there are as many tokens as images.
    """
    if expansion is None:
        return text
    parts = text.split(expansion.token)
    if len(parts) - 1 != len(expansion.texts):
        raise RowError(
            "images do not match",
            f"the prompt with a completion has {len(parts) - 1} times the image token {expansion.token!r} for "
            f"{len(expansion.texts)} images; the token may not stand in a completion, and the chat template must write "
            "it for each image of the prompt",
        )
    joined = [parts[0]]
    for image, part in zip(expansion.texts, parts[1:], strict=True):
        joined += [image, part]
    return "".join(joined)


def expanded_texts(texts: Rendered, expansion: ImageExpansion | None) -> Rendered:
    """Return the texts of a pair with its images in place. Raises RowError as `expanded` does."""
    if expansion is None:
        return texts
    prompt, chosen, rejected = (expanded(text, expansion) for text in (texts.prompt, *texts.sides))
    return Rendered(prompt, chosen, rejected, texts.dropped)


def start_of_images(tokenizer: PreTrainedTokenizerBase, expansion: ImageExpansion, ids: Sequence[TokenIds]) -> int:
    """Return the position of the first token of an image in a prompt, whose ids come first in `ids`, then completions'.

    Raises RowError unless all tokens of the images are in the prompt, and no others of their kind anywhere.
    """
    kinds = [_image_ids(tokenizer, text) for text in expansion.texts]
    wanted = sum(count for count, _ in kinds)
    known = sorted({number for _, numbers in kinds for number in numbers})
    places, *others = (np.flatnonzero(np.isin(part, known)) for part in ids)
    stray = sum(map(len, others))
    if len(places) != wanted or stray:
        raise RowError(
            "images do not match",
            f"the prompt has {len(places)} tokens of images where {len(expansion.texts)} images have {wanted}, and its "
            f"completions have {stray}; remove special tokens of images from the row's text",
        )
    return int(places[0]) if wanted else 0


@lru_cache(maxsize=256)
def _image_ids(tokenizer: PreTrainedTokenizerBase, text: str) -> tuple[int, frozenset[int]]:
    """Return how many tokens in the text of an image are special tokens, and which these are."""
    added = set(tokenizer.get_added_vocab().values())
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    special = [number for number in ids if number in added]
    return len(special), frozenset(special)
