"""What one chat request means with one template: its prompt, and how to read the answer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from msgspec import Struct

from gguf_serve.engine.chat.constrain import output_constraint
from gguf_serve.engine.chat.continuation import Continuation
from gguf_serve.engine.chat.delta import ChatDelta
from gguf_serve.engine.chat.formats.table import layout_of
from gguf_serve.engine.chat.layout import Layout, ReasoningFormat, Thinking, Tools, Turn
from gguf_serve.engine.chat.prompt import Conversation, Prompt, Template
from gguf_serve.engine.chat.scanner import MalformedError, Scanner
from gguf_serve.engine.chat.unmarked.calls import UnmarkedCalls
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.grammar.constraint import Constraint

ToolChoice = str | Mapping[str, Any]  # auto, none, required, or {"function": {"name": ...}}


class ChatFormat(Struct, frozen=True):
    """One request with one template.

    ``generation_prompt`` is the end of ``prompt`` that opens the assistant's turn, with a
    prefilled thinking tag or message. ``stops`` come on top of end-of-generation tokens;
    ``preserved_tokens`` are special tokens that the parser must get as text. ``thinking.ends[0]``
    is the text with which a reasoning budget is ended. ``grammar`` makes calls parse, from where
    they begin, and the answer follow its schema; required calls must come.
    """

    prompt: str
    generation_prompt: str
    stops: tuple[str, ...]
    preserved_tokens: tuple[str, ...]
    thinking: Thinking | None
    grammar: Constraint | None
    turn: Turn
    opened: str  # the part of the generation prompt that the answer's text begins with
    unmarked: Tools  # those that an answer without the syntax of calls may call

    def parser(self) -> ChatParser:
        return ChatParser(self.turn, self.opened, self.unmarked)


class ChatParser:
    """Reads one answer, piece by piece; never raises, whatever the model writes.

    What the prompt has already opened (a prefilled message) comes with the first delta.
    """

    def __init__(self, turn: Turn, opened: str = "", unmarked: Tools | None = None) -> None:
        """``unmarked``: tools whose calls need no syntax (unmarked/)."""
        self._unmarked = UnmarkedCalls(unmarked or {})
        self._scanner = Scanner()
        self._reader = turn.layout.read(self._scanner, turn)
        self._done = False
        self._scanner.feed(opened)

    def push(self, text: str) -> ChatDelta:
        """What new text adds; the beginning of a marker waits for more."""
        self._scanner.feed(text)
        self._advance()
        return self._unmarked.take(self._scanner.take())

    def finish(self) -> ChatDelta:
        """What had waited. Nothing may be pushed after it."""
        self._scanner.ended = True
        self._advance()
        return self._unmarked.finish(self._scanner.take())

    def _advance(self) -> None:
        if not self._done:
            try:
                next(self._reader)
            except (StopIteration, MalformedError):
                self._done = True
            else:
                return
        scanner = self._scanner
        scanner.content(scanner.text[scanner.pos :])  # after the end of what can be read
        scanner.pos = len(scanner.text)


def chat_format(
    template: Template,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Sequence[Mapping[str, Any]] | None = None,
    tool_choice: ToolChoice = "auto",
    parallel_tool_calls: bool = False,
    reasoning_format: ReasoningFormat = "auto",
    template_kwargs: Mapping[str, Any] | None = None,
    add_generation_prompt: bool = True,
    continue_final_message: Continuation = False,
    json_schema: Mapping[str, Any] | None = None,
    reads_unmarked: bool = True,
) -> ChatFormat:
    """Render the prompt and find out how the answer is written.

    ``template_kwargs`` are the template's own variables (enable_thinking and such);
    ``reads_unmarked``: an answer that is nothing but the JSON of calls is these.
    RequestError where the template refuses the messages in every form, or for a tool that is
    not there.
    """
    template = template.for_tools(bool(tools))
    layout = layout_of(template.source)
    prompt = template.prompt(
        Conversation(
            messages,
            tools,
            add_generation_prompt,
            continue_final_message,
            json_schema,
            template_kwargs,
        )
    )
    turn = Turn(
        layout, _chosen(tools or (), tool_choice), reasoning_format, json_schema is not None
    )
    return ChatFormat(
        prompt=prompt.text,
        generation_prompt=prompt.generation_prompt,
        stops=layout.stops,
        preserved_tokens=layout.tokens,
        thinking=layout.thinking,
        grammar=output_constraint(
            turn,
            prompt.generation_prompt,
            is_required=tool_choice not in ("auto", "none"),
            is_parallel=parallel_tool_calls,
            json_schema=json_schema,
            strict=[f["name"] for f in _functions(tools or ()) if f.get("strict")],
        ),
        turn=turn,
        opened=_opened(layout, prompt),
        # With a message that is continued, what comes is not all of the answer.
        unmarked=turn.tools
        if reads_unmarked and not (continue_final_message or json_schema)
        else {},
    )


def _opened(layout: Layout, prompt: Prompt) -> str:
    """The part of the generation prompt that the reader reads before the model's text."""
    generation_prompt = prompt.generation_prompt
    if layout.opening:
        return generation_prompt.partition(layout.opening)[2]
    if layout.thinking:
        for tag in (layout.thinking.start, *layout.thinking.ends):
            _, found, after = generation_prompt.partition(tag)
            if found:
                return tag + after
    return generation_prompt.removeprefix(prompt.opening)


def _chosen(tools: Sequence[Mapping[str, Any]], choice: ToolChoice) -> Tools:
    """The schemas of the tools that may be called; RequestError for one that is not there."""
    schemas = {f["name"]: f.get("parameters") or {} for f in _functions(tools)}
    if choice == "none":
        return {}
    if isinstance(choice, str):
        return schemas
    name = choice.get("function", {}).get("name")
    if name not in schemas:
        raise RequestError(f"tool_choice: no tool is named {name!r}")
    return {name: schemas[name]}


def _functions(tools: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [tool["function"] for tool in tools if tool.get("type", "function") == "function"]
