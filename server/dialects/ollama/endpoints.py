"""Ollama's API: its conversations and options to a Chat, the answer's pieces to lines of JSON.

This process serves one file, so that the endpoints that manage models answer 501.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Literal

from msgspec.structs import replace
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from gguf_serve.engine.chat.delta import ToolCallDelta
from gguf_serve.engine.errors import ContextOverflowError
from gguf_serve.engine.request import Event, Finished
from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.dialects.ollama.input import (
    ALSO,
    KNOWN_OPTIONS,
    ChatFields,
    CommonFields,
    GenerateFields,
    chat_body,
    generate_body,
    plain_body,
)
from gguf_serve.server.dialects.ollama.keep_alive import keep_alive, seconds
from gguf_serve.server.errors import ApiError, json_response
from gguf_serve.server.http.framing import NDJSON
from gguf_serve.server.interface import Tokenizer
from gguf_serve.server.requests.answer import Choice, Piece, arguments_object, join, joined_calls
from gguf_serve.server.requests.chat import prepare
from gguf_serve.server.requests.conversation import read_chat
from gguf_serve.server.requests.fields import (
    CompletionFields,
    GenerationFields,
    convert,
    max_tokens,
)
from gguf_serve.server.requests.generate import Job, make_options, plain_job, start
from gguf_serve.server.requests.infill import newest_stream, suffixed
from gguf_serve.server.requests.logprobs import content_logprobs
from gguf_serve.server.requests.newest import prepare_newest
from gguf_serve.server.requests.prompts import Prompt, checked_token, completion_prompts
from gguf_serve.server.requests.service import Service, timestamp

Field = Literal["message", "response"]


def routes(service: Service) -> list[BaseRoute]:
    return [
        Post("/api/chat", partial(chat, service), ChatFields, also=ALSO),
        Post("/api/generate", partial(generate, service), GenerateFields, also=ALSO),
    ]


def error_body(error: ApiError) -> dict[str, object]:
    return {"error": error.message}


async def chat(service: Service, http: HttpRequest) -> ASGIApp:
    """Go on with a conversation, in Ollama's form."""
    fields = convert(await read(service, http), ChatFields)
    keep_alive(service, fields.keep_alive)
    if not fields.messages:
        return loaded(service, "message", fields.keep_alive)
    request = read_chat(chat_body(fields))
    n_ctx = context_of(fields, service)
    if fields.truncate:
        job = await prepare_newest(service, request, n_ctx)
    else:
        job = await prepare(service, request)
    within(n_ctx, request, job, service)
    n_top = (fields.top_logprobs or 0) if fields.logprobs else None
    options = make_options(request, n_top, service)
    dialect = Lines("message", job.choices()[0], service.model_name, n_top)
    return await start(service, request, job, options, dialect)


async def generate(service: Service, http: HttpRequest) -> ASGIApp:
    """Answer a prompt, or go on with it as it is (`raw`)."""
    fields = convert(await read(service, http), GenerateFields)
    keep_alive(service, fields.keep_alive)
    if not fields.prompt and not fields.suffix:
        return loaded(service, "response", fields.keep_alive)
    request: Any
    if fields.raw or fields.suffix:
        request = convert(plain_body(fields), CompletionFields)
        n_characters = len(fields.prompt) + len(fields.suffix or "")
        prompts = await service.read_text(n_characters, plain_prompts, service, fields)
        job = await plain_job(service, request, prompts)
    else:
        request = read_chat(generate_body(fields))
        job = await prepare(service, request)
        job = after(fields.context or [], job, service.engine.tokenizer)
    within(context_of(fields, service), request, job, service)
    n_top = (fields.top_logprobs or 0) if fields.logprobs else None
    options = make_options(request, n_top, service)
    has_context = job.format is not None  # of what no template wrote there is no turn to go on
    dialect = Lines("response", job.choices()[0], service.model_name, n_top, has_context)
    stream = newest_stream(service, http) if fields.suffix else None
    return await start(service, request, job, options, dialect, stream)


async def read(service: Service, http: HttpRequest) -> dict[str, Any]:
    """The body, whose options are told of like its fields where nobody knows them."""
    body = await service.read_object(http)
    options = body.get("options")
    if isinstance(options, dict):
        service.note_unknown(http, (f"options.{name}" for name in options), KNOWN_OPTIONS)
    return body


def context_of(fields: CommonFields, service: Service) -> int:
    """Tokens: ``num_ctx`` where that is less than the server has."""
    asked = fields.options and fields.options.num_ctx
    return min(asked or service.engine.n_ctx, service.engine.n_ctx)


def within(n_ctx: int, fields: GenerationFields, job: Job, service: Service) -> None:
    """Have the answer end where a context of that length does. ContextOverflowError if it has no
    room for any."""
    if n_ctx == service.engine.n_ctx:
        return  # the engine sees to that
    room = n_ctx - max(len(prompt.ids) for prompt in job.prompts)
    if room <= 0:
        raise ContextOverflowError(n_ctx - room, n_ctx)
    asked = max_tokens(fields, service.defaults.max_tokens)
    fields.n_predict = room if asked < 0 else min(asked, room)


def plain_prompts(service: Service, fields: GenerateFields) -> list[Prompt]:
    if fields.suffix:
        return [suffixed(fields.prompt, fields.suffix, service)]
    return completion_prompts(fields.prompt, service.engine.tokenizer, service.engine.n_ctx)


def after(context: Sequence[int], job: Job, tokenizer: Tokenizer) -> Job:
    """The job with a prompt that goes on where an earlier answer has ended."""
    (prompt,) = job.prompts
    if not context:
        return job
    past = tuple(checked_token("context", id, tokenizer) for id in context)
    begin = tokenizer.encode("", add_special=True, parse_special=False)[:1]
    n = len(begin) if prompt.ids[:1] == tuple(begin) else 0
    ids, shift = prompt.ids[n:], len(past) - n
    media = tuple(replace(span, start=span.start + shift) for span in prompt.media)
    return replace(job, prompts=[Prompt(past + ids, None, media)])


def loaded(service: Service, field: Field, kept: str | float | None) -> Response:
    """The answer to no prompt, which asks to load the model, or with 0 to unload it."""
    reason = "unload" if kept is not None and seconds(kept) == 0 else "load"
    head = {"model": service.model_name, "created_at": now()}
    return json_response(head | empty(field) | {"done": True, "done_reason": reason})


def empty(field: Field) -> dict[str, Any]:
    return {"response": ""} if field == "response" else {"message": message("")}


def message(content: str) -> dict[str, Any]:
    return {"role": "assistant", "content": content}


def now() -> str:
    return timestamp(time.time())


class Lines:
    """The dialect of both endpoints: a line for each piece, the last with counts and times.

    Ollama's calls are whole: one is sent when the next begins, or the answer ends.
    """

    framing = NDJSON

    def __init__(
        self,
        field: Field,
        choice: Choice,
        model: str,
        n_top: int | None,
        has_context: bool = False,
    ) -> None:
        """``has_context``: whether the answer says what to go on from."""
        self.field = field
        self.choice = choice
        self.model = model
        self.n_top = n_top
        self._has_context = has_context
        self._tokens: list[int] = []  # of the answer so far
        self._parts: list[Piece] = []  # of a whole answer
        self._call: list[ToolCallDelta] = []  # the one that grows
        self._began = time.perf_counter_ns()

    def chunks(self, index: int, event: Event) -> Iterable[object]:
        lines: list[dict[str, Any]] = []
        for piece in self.choice.take(event):
            self._tokens += piece.tokens
            calls = tuple(call for part in piece.calls for call in self._complete(part))
            if piece.text or piece.reasoning or calls:
                lines.append(self._line(piece, calls) | {"done": False})
        if type(event) is Finished:
            if self._call:
                lines.append(self._line(Piece(), joined_calls(self._call)) | {"done": False})
            lines.append(self._line(Piece(), ()) | self._totals())
        return lines

    def last_chunks(self) -> Iterable[object]:
        return ()

    def failed(self, error: ApiError) -> Iterable[object]:
        return (error_body(error),)

    def take(self, index: int, event: Event) -> None:
        self._parts.extend(self.choice.take(event))

    def whole(self) -> object:
        answer = join(self._parts)
        self._tokens += answer.tokens
        return self._line(answer, answer.calls) | self._totals()

    def _complete(self, part: ToolCallDelta) -> Iterable[ToolCallDelta]:
        """The call before, once the next begins."""
        if part.id and self._call:
            yield from joined_calls(self._call)
            self._call = []
        self._call.append(part)

    def _line(self, piece: Piece, calls: tuple[ToolCallDelta, ...]) -> dict[str, Any]:
        line: dict[str, Any] = {"model": self.model, "created_at": now()}
        if self.field == "response":
            line["response"] = piece.text
            shown = line
        else:
            shown = line["message"] = message(piece.text)
        if piece.reasoning:
            shown["thinking"] = piece.reasoning
        if calls:
            shown["tool_calls"] = [whole_call(call) for call in calls]
        if self.n_top is not None and piece.scores:
            line["logprobs"] = content_logprobs(piece.scores, self.n_top, False)
        return line

    def _totals(self) -> dict[str, Any]:
        """Durations in nanoseconds."""
        timings, started = self.choice.timings, self.choice.started
        totals: dict[str, Any] = {
            "done": True,
            "done_reason": "length" if self.choice.finish_reason == "length" else "stop",
            "total_duration": time.perf_counter_ns() - self._began,
            "load_duration": 0,
            "prompt_eval_count": started.n_prompt,
            "prompt_eval_duration": int(timings.prompt_ms * 1e6),
            "eval_count": timings.predicted_n,
            "eval_duration": int(timings.predicted_ms * 1e6),
        }
        prompt = self.choice.prompt
        if self._has_context and not prompt.media:  # images are no tokens
            totals["context"] = [*prompt.ids, *self._tokens]
        return totals


def whole_call(call: ToolCallDelta) -> Mapping[str, Any]:
    function = {"index": call.index, "name": call.name, "arguments": arguments_object(call)}
    return {"id": call.id, "function": function}
