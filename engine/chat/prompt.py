"""A conversation's prompt, and which parts of it open the answer: all that a template is for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from msgspec import Struct

from gguf_serve.engine.chat.acceptable import Messages, ShownTools, accepted
from gguf_serve.engine.chat.caps import Caps
from gguf_serve.engine.chat.continuation import Continuation


class Conversation(NamedTuple):
    """What a prompt is made of. ``extra`` are variables of the template's own (enable_thinking)."""

    messages: Sequence[Mapping[str, Any]]
    tools: Sequence[Mapping[str, Any]] | None = None
    add_generation_prompt: bool = True
    continue_final_message: Continuation = False
    json_schema: Mapping[str, Any] | None = None
    extra: Mapping[str, Any] | None = None


class Prompt(Struct, frozen=True):
    """``generation_prompt`` is the end of ``text`` that opens the assistant's turn, with a
    prefilled thinking tag or message; ``opening`` the same without the message."""

    text: str
    opening: str
    generation_prompt: str


class Template(Protocol):
    """A chat template, wherever it is rendered."""

    @property
    def source(self) -> str: ...
    @property
    def caps(self) -> Caps: ...
    def for_tools(self, has_tools: bool) -> Template: ...
    def prompt(self, conversation: Conversation) -> Prompt: ...


class Render(Protocol):
    """ChatTemplate.render."""

    def __call__(
        self,
        messages: Messages,
        *,
        tools: ShownTools,
        add_generation_prompt: bool,
        continue_final_message: Continuation,
        json_schema: Mapping[str, Any] | None,
        extra: Mapping[str, Any] | None,
    ) -> str: ...


def write_prompt(rendered: Render, asked: Conversation) -> Prompt:
    """RequestError where the template refuses the messages in every form."""

    def render(messages: Messages, tools: ShownTools, add: bool, mode: Continuation = False) -> str:
        return rendered(
            messages,
            tools=tools,
            add_generation_prompt=add,
            continue_final_message=mode,
            json_schema=asked.json_schema,
            extra=asked.extra,
        )

    adds, mode = asked.add_generation_prompt, asked.continue_final_message
    messages, shown, text = accepted(
        asked.messages, asked.tools, lambda messages, tools: render(messages, tools, adds, mode)
    )
    if mode:
        before = messages[:-1]
        until = render(before, shown, False)
        opening = added(until, render(before, shown, True))
        return Prompt(text, opening, added(until, text))
    if adds:
        opening = added(render(messages, shown, False), text)
    else:
        opening = added(text, render(messages, shown, True))
    return Prompt(text, opening, opening)


def added(before: str, after: str) -> str:
    """What ``after`` has beyond the beginning that both share."""
    if after.startswith(before):
        return after[len(before) :]
    pairs = enumerate(zip(before, after, strict=False))
    shared = min(len(before), len(after))
    return after[next((i for i, (a, b) in pairs if a != b), shared) :]
