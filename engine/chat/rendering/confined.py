"""A model's chat templates in a process of their own, where they can do no harm.

A template may loop without end and build texts without bound, in one operation of the
interpreter, too: where the server rendered it, nobody would be answered any more. So the server
has a ConfinedTemplate, which asks a child process (template_process.py); limits of time and
memory are the operating system's.
"""

from __future__ import annotations

import threading

import msgspec
from msgspec import Struct

from gguf_serve.engine.chat.caps import Caps
from gguf_serve.engine.chat.prompt import Conversation, Prompt
from gguf_serve.engine.child import ChildError, Limits, Pool
from gguf_serve.engine.errors import ModelError, RequestError

LIMITS = Limits(seconds=5.0, memory=192 << 20)  # of one prompt, all its renderings together
MOST = 3  # children: while two render for long, a client has no more, others have the third
MODULE = "gguf_serve.engine.chat.rendering.template_process"


class Templates(msgspec.Struct, frozen=True):
    """A model's templates; ``tool_use`` is for requests with tools, if there is one."""

    default: str
    tool_use: str | None = None
    bos_token: str = ""
    eos_token: str = ""


class Asked(msgspec.Struct, frozen=True):
    """A message to the child. Without a conversation it is about what the template can do."""

    has_tools: bool
    caps: Caps | None = None
    conversation: Conversation | None = None


class Refused(msgspec.Struct, frozen=True, tag=True):
    """What a template, or this program, has against a request."""

    message: str


class Written(msgspec.Struct, frozen=True, tag=True):
    prompt: Prompt


class Probed(msgspec.Struct, frozen=True, tag=True):
    caps: Caps


class Compiled(msgspec.Struct, frozen=True, tag=True):
    pass


Answer = Refused | Written | Probed | Compiled
_DECODER = msgspec.msgpack.Decoder(Answer)
encode_answer = msgspec.msgpack.Encoder().encode


class _Found(Struct):
    """What is known of a template's abilities: nothing, them, or that it fails with any text."""

    lock: threading.Lock
    caps: Caps | None = None
    fault: str = ""


class ConfinedTemplate:
    """A template that is rendered in a child process; for the rest as ChatTemplate."""

    def __init__(self, templates: Templates, limits: Limits = LIMITS, most: int = MOST) -> None:
        """Returns at once; ``check`` says whether the templates are well-formed."""
        self._pool = Pool(MODULE, templates, most=most, limits=limits)
        self.source = templates.default
        self._has_tools = False
        self._found = _Found(threading.Lock())
        self._tool_use = self._for_tools(templates.tool_use) if templates.tool_use else None

    def _for_tools(self, source: str) -> ConfinedTemplate:
        other = ConfinedTemplate.__new__(ConfinedTemplate)
        other._pool, other.source, other._has_tools = self._pool, source, True
        other._found, other._tool_use = _Found(threading.Lock()), None
        return other

    def check(self) -> None:
        """Wait until the templates are compiled; ModelError if they cannot be."""
        try:
            answer = _DECODER.decode(self._pool.first_answer())
        except ChildError as error:
            raise ModelError(f"chat template: while it was compiled, {error}") from error
        if isinstance(answer, Refused):
            raise ModelError(answer.message)

    def for_tools(self, has_tools: bool) -> ConfinedTemplate:
        """The template of a request that has tools, or has not."""
        return self._tool_use if has_tools and self._tool_use else self

    @property
    def caps(self) -> Caps:
        """What the template supports, by trial rendering at the first use. RequestError if it
        does not end: then not at any later use either, which is not tried."""
        found = self._found
        with found.lock:
            if found.fault:
                raise RequestError(found.fault)
            if found.caps is None:
                try:
                    answer = self._ask(Asked(self._has_tools))
                except RequestError as error:
                    cause = error.__cause__
                    if isinstance(cause, ChildError) and cause.why != "ended":
                        found.fault = str(error)
                    raise
                assert isinstance(answer, Probed)
                found.caps = answer.caps
            return found.caps

    def prompt(self, conversation: Conversation) -> Prompt:
        """The prompt of a conversation. RequestError with the template's own message where it
        refuses it, or with what it took too much of."""
        answer = self._ask(Asked(self._has_tools, self.caps, conversation))
        assert isinstance(answer, Written)
        return answer.prompt

    def _ask(self, asked: Asked) -> Answer:
        try:
            answer: Answer = _DECODER.decode(self._pool.ask(asked))
        except ChildError as error:
            raise RequestError(f"chat template: {error}") from error
        except RecursionError as error:
            raise RequestError("chat template: a value is nested too deeply") from error
        if isinstance(answer, Refused):
            raise RequestError(answer.message)
        return answer

    def close(self) -> None:
        """End the processes; a later use starts one anew."""
        self._pool.close()
