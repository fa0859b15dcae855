"""Render conversations with the chat template, and check that what a row says stands in its text.

A row goes to quarantine with a reason of its own where the template refuses it, drops or moves some of its words
(unless `on_template_loss=keep`), leaves a completion without words, or renders the prompt differently when an answer
follows, because the completion would then begin inside the prompt.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from transformers import PreTrainedTokenizerBase

from raydpo.data.dialects.images import PLACEHOLDER, in_messages, is_image
from raydpo.data.dialects.messages import TEXT_PARTS
from raydpo.data.dialects.pair import Pair, RowError, type_name
from raydpo.data.row_errors import attempt, attempt_each
from raydpo.data.templates.chat_template import CALL_ARGUMENTS, ChatTemplate
from raydpo.data.templates.probe import probe_of, with_text_arguments
from raydpo.data.templates.rendered import Rendered
from raydpo.data.templates.rendering_check import checked
from raydpo.data.templates.text_options import TextOptions
from raydpo.errors import DataError

REFUSED = "refused by the chat template"


def render_conversations(
    tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], options: TextOptions
) -> list[Rendered | RowError]:
    """Return the texts of conversational pairs, or the reason why a pair has none, in order.

    Raises DataError if the template renders none of the pairs, nor one question and its answer.
    """
    ready = [attempt(partial(for_template, tokenizer, pair, options), REFUSED) for pair in pairs]
    found: dict[int, Rendered | RowError] = {i: part for i, part in enumerate(ready) if isinstance(part, RowError)}
    groups: dict[str, list[tuple[int, Pair]]] = {}  # pairs that one call of the template can render
    for i, pair in enumerate(ready):
        if not isinstance(pair, RowError):
            groups.setdefault(_group(pair, i), []).append((i, pair))
    for members in groups.values():
        template = template_of(tokenizer, members[0][1], options)
        texts = attempt_each([pair for _, pair in members], partial(_texts, template), REFUSED)
        for (i, pair), text in zip(members, texts, strict=True):
            if not isinstance(text, RowError):
                text = attempt(partial(checked, template, pair, text, options), REFUSED)
            found[i] = text
    ordered = [found[i] for i in range(len(pairs))]
    _check_template(tokenizer, pairs, ordered, options)
    return ordered


def template_of(tokenizer: PreTrainedTokenizerBase, pair: Pair, options: TextOptions) -> ChatTemplate:
    """Return the chat template with what a pair gives it besides messages."""
    return ChatTemplate(tokenizer, pair.tools, pair.chat_template_kwargs, options.chat_template_date)


def _group(pair: Pair, number: int) -> str:
    if pair.tools is None and not pair.chat_template_kwargs:
        return ""
    alike = attempt(lambda: json.dumps([pair.tools, pair.chat_template_kwargs], default=repr), "")
    return f"pair {number}" if isinstance(alike, RowError) else alike


def _check_template(
    tokenizer: PreTrainedTokenizerBase,
    pairs: Sequence[Pair],
    results: Sequence[Rendered | RowError],
    options: TextOptions,
) -> None:
    refused = [part for part in results if isinstance(part, RowError) and str(part).startswith(REFUSED)]
    if (
        not results
        or len(refused) < len(results)
        or any("chat_template" in pair.chat_template_kwargs for pair in pairs)
    ):
        return
    fault = attempt(lambda: probe_of(template_of(tokenizer, Pair([], [], []), options)).fault, "it cannot be read")
    if fault:
        raise DataError(
            f"the chat template of {tokenizer.name_or_path!r} cannot render one question and its answer: {fault}; "
            "correct chat_template in the model's folder, or use another model"
        )


def for_template(tokenizer: PreTrainedTokenizerBase, pair: Pair, options: TextOptions) -> Pair:
    """Return the pair with contents and tool calls in a form that the template renders."""
    if reserved := CALL_ARGUMENTS & pair.chat_template_kwargs.keys():
        raise RowError(
            "wrong chat_template_kwargs", f"{sorted(reserved)} are not variables of the chat template; remove them"
        )
    sides: list[Any] = [pair.prompt, pair.chosen, pair.rejected]
    contents = [message.get("content") for side in sides for message in side]
    found = probe_of(template_of(tokenizer, pair, options))
    if any(message.get("tool_calls") for side in sides for message in side) and found.needs_text_arguments:
        sides = [list(map(with_text_arguments, side)) for side in sides]
        pair = replace(pair, prompt=sides[0], chosen=sides[1], rejected=sides[2])
    if not found.needs_parts and all(content is None or isinstance(content, str) for content in contents):
        return pair
    has_images = any(map(in_messages, sides))
    if has_images and pair.expansion is None:
        raise RowError("wrong type", "a part of a content is an image, which was not read")
    # As in TRL, all contents beside one with images are parts, where the template renders these.
    split = found.needs_parts or (found.renders_parts and has_images)
    form = partial(_with_text, joined=not found.renders_parts, split=split)
    prompt, chosen, rejected = ([form(message) for message in side] for side in sides)
    return replace(pair, prompt=prompt, chosen=chosen, rejected=rejected)


def _with_text(message: Mapping[str, Any], *, joined: bool, split: bool) -> dict[str, Any]:
    """Return the message with its text in the form that the template takes: as one text (`joined`) or as parts."""
    content = message.get("content")
    if content is None or (isinstance(content, str) and not split):
        return dict(message)
    if isinstance(content, str):
        return {**message, "content": [{"type": "text", "text": content}]}
    if not isinstance(content, list):
        raise RowError("wrong type", f"a content is {type_name(content)}, not text or a list of text parts")
    if any(map(is_image, content)):  # a template may render the parts of a user and not those of an answer
        parts = [PLACEHOLDER if is_image(part) else {"type": "text", "text": _part_text(part)} for part in content]
        return {**message, "content": parts}
    texts = [_part_text(part) for part in content]
    # Servers of models whose templates take text only join the parts by line breaks too (vLLM's chat API).
    return {**message, "content": "\n".join(texts) if joined else [{"type": "text", "text": text} for text in texts]}


def _part_text(part: Any) -> str:
    if isinstance(part, str):
        return part
    if not isinstance(part, Mapping):
        raise RowError("wrong type", f"a part of a content is {type_name(part)}, not an object with type and text")
    kind, text = part.get("type", "text"), part.get("text")
    if not isinstance(kind, str) or kind not in TEXT_PARTS:
        raise RowError("wrong type", f"a part of a content has the type {kind!r}; only parts of text can be trained on")
    if not isinstance(text, str):
        raise RowError("wrong type", f"the text of a part of a content is {type_name(text)}, not a string")
    return text


def _texts(template: ChatTemplate, pairs: Sequence[Pair]) -> list[Rendered]:
    prompts: list[Any] = [pair.prompt for pair in pairs]
    sides: list[list[Any]] = [[pair.chosen for pair in pairs], [pair.rejected for pair in pairs]]
    chosen, rejected = ([start + end for start, end in zip(prompts, side, strict=True)] for side in sides)
    return [
        Rendered(*texts)
        for texts in zip(
            template.render(prompts, generation_prompt=True),
            template.render(chosen, generation_prompt=False),
            template.render(rejected, generation_prompt=False),
            strict=True,
        )
    ]
