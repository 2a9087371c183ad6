"""Chat templates: messages in, the prompt's text out.

A template is Jinja from a model file (``tokenizer.chat_template``), from the user, or one
of builtin.py's. The prompt holds the BOS text if the template writes it; whoever
tokenizes with a BOS of its own drops one of the two.
"""

from __future__ import annotations

import copy
import functools
import traceback
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from jinja2.exceptions import TemplateError, TemplateSyntaxError

from gguf_serve.engine.chat.caps import Caps, Message
from gguf_serve.engine.chat.continuation import Continuation, continued_field, render_continued
from gguf_serve.engine.chat.messages import adapt, joined
from gguf_serve.engine.chat.prompt import Conversation, Prompt, write_prompt
from gguf_serve.engine.chat.rendering import families
from gguf_serve.engine.chat.rendering.probing import RENDER_ERRORS, probe
from gguf_serve.engine.chat.rendering.sandbox import ChatEnvironment
from gguf_serve.engine.errors import ModelError, RequestError


class ChatTemplate:
    """A compiled template. ``now`` is the clock that templates with a date read.

    Requests with tools take the template ``tool_use`` instead, if there is one. Nothing bounds
    what a template computes: those that are not trusted are rendered by confined.py.
    """

    def __init__(
        self,
        source: str,
        *,
        bos_token: str = "",
        eos_token: str = "",
        tool_use: str | None = None,
        now: Callable[[], datetime] = datetime.now,
    ) -> None:
        self.source = source
        self.bos_token = bos_token
        self.eos_token = eos_token
        self._now = now
        self._environment = ChatEnvironment(now)
        try:
            self._template = self._environment.from_string(source)
        except TemplateSyntaxError as error:
            raise ModelError(f"chat template, line {error.lineno}: {error.message}") from error
        except (RecursionError, SyntaxError) as error:
            raise ModelError(f"chat template: nested too deeply ({error})") from error
        self._tool_use = (
            ChatTemplate(tool_use, bos_token=bos_token, eos_token=eos_token, now=now)
            if tool_use
            else None
        )

    def for_tools(self, has_tools: bool) -> ChatTemplate:
        """The template of a request that has tools, or has not."""
        return self._tool_use if has_tools and self._tool_use else self

    @functools.cached_property
    def caps(self) -> Caps:
        """What the template supports, by trial rendering at the first use."""
        return probe(
            lambda messages, tools, extra: self._run(messages, tools, False, with_aliases(extra))
        )

    def prompt(self, conversation: Conversation) -> Prompt:
        """The prompt of a conversation, in the first form that the template takes."""
        return write_prompt(self.render, conversation)

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        tools: Sequence[Mapping[str, Any]] | None = None,
        add_generation_prompt: bool = True,
        continue_final_message: Continuation = False,
        json_schema: Mapping[str, Any] | None = None,
        extra: Mapping[str, Any] | None = None,
    ) -> str:
        """The prompt of a conversation.

        ``extra`` are more variables (enable_thinking, chat_template_kwargs). RequestError
        with the template's own message where it refuses the conversation.
        """
        template = self.for_tools(bool(tools))
        source = template.source
        variables = families.variables(source, json_schema) | with_aliases(extra or {})

        def run(adapted: list[Message], add: bool) -> str:
            return template._run(families.prepare(source, adapted), tools, add, variables)

        try:
            adapted = adapt(messages, template.caps)
            if continue_final_message:
                return template._continued(run, messages, adapted, continue_final_message)
            prompt = run(adapted, add_generation_prompt)
        except RENDER_ERRORS as error:
            raise RequestError(_explain(error)) from error
        return families.complete(source, prompt) if add_generation_prompt else prompt

    def _continued(
        self,
        run: Callable[[list[Message], bool], str],
        messages: Sequence[Mapping[str, Any]],
        adapted: list[Message],
        mode: Continuation,
    ) -> str:
        field = continued_field(messages, mode)
        content = joined(adapted[-1])
        texts = (messages[-1].get("reasoning_content"), content)
        return render_continued(run, self.source, self.caps, adapted, texts, field)

    def _run(
        self,
        messages: list[Message],
        tools: Sequence[Mapping[str, Any]] | None,
        add_generation_prompt: bool,
        extra: Mapping[str, Any],
    ) -> str:
        now = self._now()
        variables: dict[str, Any] = {
            "messages": messages,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "enable_thinking": True,
            "datetime": now.strftime("%b %d %Y"),
            "date_string": now.strftime("%d %b %Y"),
        }
        # Absent, not empty or false: templates ask "is defined" (llama.cpp does the same).
        if tools:
            variables["tools"] = list(tools)
        if add_generation_prompt:
            variables["add_generation_prompt"] = True
        return self._template.render(copy.deepcopy(variables | dict(extra)))


def with_aliases(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """chat_template_kwargs plus the names under which other templates know two of them."""
    aliases: dict[str, Any] = {}
    if "preserve_reasoning" in kwargs:
        keep = bool(kwargs["preserve_reasoning"])
        aliases |= {"preserve_thinking": keep, "clear_thinking": not keep}
        aliases |= {"truncate_history_thinking": not keep, "drop_thinking": not keep}
    if "reasoning_effort" in kwargs:
        aliases["reasoning_strength"] = kwargs["reasoning_effort"]
    return aliases | dict(kwargs)


def _explain(error: BaseException) -> str:
    """A template's own message as it is; for a failure its kind and line."""
    if type(error) is TemplateError:
        return str(error)
    if isinstance(error, RecursionError):
        return "chat template: it calls itself without end, or a value is nested too deeply"
    frames = traceback.extract_tb(error.__traceback__)
    line = next((f.lineno for f in reversed(frames) if f.filename == "<template>"), None)
    place = f", line {line}" if line else ""
    return f"chat template{place}: {type(error).__name__}: {error}"
