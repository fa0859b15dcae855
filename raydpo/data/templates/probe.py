"""Find out what a chat template can render by giving it small conversations of words that no template contains."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property, lru_cache
from typing import Any

from transformers import PreTrainedTokenizerBase

from raydpo.data.dialects.pair import Messages, RowError
from raydpo.data.row_errors import attempt
from raydpo.data.templates.chat_template import ChatTemplate

SYSTEM, TOOLS, TOOL_CALLS = "system message", "tools", "tool calls"
TOOL_RESULTS, REASONING, TURNS = "tool results", "reasoning", "turns"
"""The kinds of words in a row that a template may drop."""

_LACKS = {
    SYSTEM: "has no place for a system message",
    TOOLS: "presents no tools",
    TOOL_CALLS: "writes no tool calls",
    TOOL_RESULTS: "writes no tool results",
    REASONING: "drops the reasoning of an answer",
    TURNS: "drops turns of this role",
}
_VANISHES = "writes a system message only into a last turn of the user, not where an answer follows"
THINK_TAGS = "content"
"""Source of reasoning that stands in the content, between <think> and </think>."""

_QUESTION, _ANSWER, _WORD = "probequestion", "probeanswer", "probeword"
_USER = {"role": "user", "content": _QUESTION}
_REPLY = {"role": "assistant", "content": _ANSWER}


def _call(name: str) -> dict[str, Any]:
    function = {"name": name, "arguments": {"probekey": "probevalue"}}
    return {
        "role": "assistant",
        "content": "",
        "tool_calls": [{"id": "probeid00", "type": "function", "function": function}],
    }


def _tool(name: str) -> dict[str, Any]:
    properties = {"probekey": {"type": "string", "description": "probekey"}}
    parameters = {"type": "object", "properties": properties, "required": ["probekey"]}
    return {"type": "function", "function": {"name": name, "description": name, "parameters": parameters}}


def _conversation(kind: str, source: str) -> Messages:
    """Return a conversation in which `_WORD` is of this kind; see `TemplateProbe.lacks` for the source."""
    if kind == SYSTEM:
        return [{"role": source, "content": _WORD}, _USER, _REPLY]
    if kind == TOOL_CALLS:
        return [_USER, _call(_WORD)]
    if kind == TOOL_RESULTS:
        result = {"role": source, "name": "probecall", "tool_call_id": "probeid00", "content": _WORD}
        return [_USER, _call("probecall"), result, _REPLY]
    if kind == REASONING and source == THINK_TAGS:
        return [_USER, {**_REPLY, "content": f"<think>\n{_WORD}\n</think>\n\n{_ANSWER}"}]
    if kind == REASONING:
        return [_USER, {**_REPLY, source: _WORD}]
    return [_USER, {"role": source, "content": _WORD}, _REPLY] if kind == TURNS else [_USER, _REPLY]


def _in_parts(messages: Messages) -> Messages:
    return [{**message, "content": [{"type": "text", "text": message["content"]}]} for message in messages]


def with_text_arguments(message: Mapping[str, Any]) -> dict[str, Any]:
    """Return a message with the arguments of its tool calls as JSON text, as OpenAI's API has them."""
    calls = message.get("tool_calls")
    return {**message, "tool_calls": [_with_text(call) for call in calls]} if calls else dict(message)


def _with_text(call: Any) -> Any:
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or isinstance(function.get("arguments"), str):
        return call
    arguments = json.dumps(function.get("arguments", {}), ensure_ascii=False)
    return {**call, "function": {**function, "arguments": arguments}}


@dataclass(frozen=True)
class TemplateProbe:
    """What a chat template renders, each question answered once; see `probe_of`."""

    template: ChatTemplate

    def _render(self, messages: Messages) -> str | RowError:
        return attempt(lambda: self.template.render([messages], generation_prompt=False)[0], "")

    @cached_property
    def fault(self) -> str:
        """The error of a template that cannot render one question and its answer; empty if it can."""
        if self.needs_parts:
            return ""
        rendered = self._render([_USER, _REPLY])
        return str(rendered).removeprefix(": ") if isinstance(rendered, RowError) else ""

    @cached_property
    def end_of_turn(self) -> str:
        """The text that the template writes after an answer; empty if it is unknown."""
        plain = [_USER, _REPLY]
        rendered = self._render(_in_parts(plain) if self.needs_parts else plain)
        return "" if isinstance(rendered, RowError) else rendered.rpartition(_ANSWER)[2].strip()

    @cached_property
    def renders_parts(self) -> bool:
        """Whether a content that is a list of text parts is rendered as its text."""
        parts = [{"type": "text", "text": _WORD}]
        rendered = self._render([{**_USER, "content": parts}, {**_REPLY, "content": parts}])
        if isinstance(rendered, RowError):
            return False
        quoted = f"'{_WORD}'" in rendered or f'"{_WORD}"' in rendered
        return rendered.count(_WORD) == 2 and not quoted

    @cached_property
    def needs_parts(self) -> bool:
        """Whether only a content that is a list of parts is rendered, as by templates of models that see images too."""
        rendered = self._render([_USER, _REPLY])
        return self.renders_parts and (isinstance(rendered, RowError) or _ANSWER not in rendered)

    @cached_property
    def needs_text_arguments(self) -> bool:
        """Whether arguments are written as JSON only where they are JSON text, as by DeepSeek's templates."""
        return not self._writes_call(_call("probecall")) and self._writes_call(with_text_arguments(_call("probecall")))

    def _writes_call(self, message: dict[str, Any]) -> bool:
        template = replace(self.template, tools=[_tool("probetool")])
        rendered = attempt(lambda: template.render([[_USER, message]], generation_prompt=False)[0], "")
        # Single quotes are Python's notation of an object that the template takes for text.
        return isinstance(rendered, str) and "probevalue" in rendered and "'probekey'" not in rendered

    def lacks(self, kind: str, source: str) -> bool:
        """Return whether the template drops words of this kind, silently; False if it refuses them or that is unknown.

        `source` is where the words are: the role of the message, or the message's key or THINK_TAGS for reasoning.
        """
        return _lacks(self, kind, source)

    def lack_text(self, kind: str, source: str) -> str:
        """Return, as the end of a sentence, what the template lacks; empty if it lacks nothing of this kind."""
        if not self.lacks(kind, source):
            return ""
        return _VANISHES if kind == SYSTEM and self._writes_system_last(source) else _LACKS[kind]

    def _writes_system_last(self, role: str) -> bool:
        """Return whether a system message is written while no answer follows, as by Mistral's templates."""
        messages = [{"role": role, "content": _WORD}, _USER]
        rendered = self._render(_in_parts(messages) if self.needs_parts else messages)
        return isinstance(rendered, str) and _WORD in rendered

    def __hash__(self) -> int:
        return id(self)


@lru_cache(maxsize=256)
def _lacks(probe: TemplateProbe, kind: str, source: str) -> bool:
    if kind == TURNS and source in ("user", "assistant"):
        return False
    template, messages = probe.template, _conversation(kind, source)
    if kind in (TOOLS, TOOL_CALLS, TOOL_RESULTS):
        template = replace(template, tools=[_tool(_WORD if kind == TOOLS else "probetool")])
    if probe.needs_parts:
        messages = _in_parts(messages)
    elif kind in (TOOL_CALLS, TOOL_RESULTS) and probe.needs_text_arguments:
        messages = list(map(with_text_arguments, messages))
    rendered = attempt(lambda: template.render([messages], generation_prompt=False)[0], "")
    if isinstance(rendered, RowError):
        return False
    moved = kind == SYSTEM and _WORD not in rendered.partition(_ANSWER)[0]
    return moved or _WORD not in rendered


@lru_cache(maxsize=16)
def _probe(tokenizer: PreTrainedTokenizerBase, source: str, date: str | None) -> TemplateProbe:
    return TemplateProbe(ChatTemplate(tokenizer, None, {"chat_template": source}, date))


def probe_of(template: ChatTemplate) -> TemplateProbe:
    """Return the probe of a template, whatever a row gives it; one per tokenizer, template and process."""
    return _probe(template.tokenizer, template.text, template.date)
