"""Anthropic's Messages API: its conversations to a Chat, the answer's pieces to its events.

Blocks of content become messages of the one Chat; what is ignored and refused is listed in
docs/api.md.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute

from gguf_serve.engine.chat.delta import ToolCallDelta
from gguf_serve.engine.request import Event, Finished, Started
from gguf_serve.server.dialects.anthropic.errors import error_body
from gguf_serve.server.dialects.anthropic.input import ALSO, MessagesFields, chat_body
from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import ApiError, json_response
from gguf_serve.server.http.framing import EVENT_STREAM, Framing, named_sse
from gguf_serve.server.http.reply import Reply
from gguf_serve.server.requests.answer import Choice, Piece, arguments_object, join, random_id
from gguf_serve.server.requests.chat import prepare
from gguf_serve.server.requests.conversation import read_chat
from gguf_serve.server.requests.fields import convert
from gguf_serve.server.requests.generate import Options, start
from gguf_serve.server.requests.service import Service

ANTHROPIC_SSE = Framing(EVENT_STREAM, named_sse, named_sse({"type": "ping"}))


def routes(service: Service) -> list[BaseRoute]:
    return [
        Post(path, partial(endpoint, service), MessagesFields, also=ALSO)
        for path, endpoint in (
            ("/v1/messages", messages),
            ("/v1/messages/count_tokens", count_tokens),
        )
    ]


async def messages(service: Service, http: HttpRequest) -> Reply:
    data = await service.read_object(http)
    fields = convert(data, MessagesFields)
    chat = read_chat(chat_body(fields, data))
    job = await prepare(service, chat)
    dialect = Messages(
        job.choices()[0], service.model_name, fields.stop_sequences or [], fields.max_tokens
    )
    return await start(service, chat, job, Options(), dialect)


async def count_tokens(service: Service, http: HttpRequest) -> Response:
    data = await service.read_object(http)
    chat = read_chat(chat_body(convert(data, MessagesFields), data))
    job = await prepare(service, chat, counts=True)
    return json_response({"input_tokens": len(job.prompts[0].ids)})


class Messages:
    """The dialect: a block of content for each kind of piece, in their order."""

    framing = ANTHROPIC_SSE

    def __init__(
        self, choice: Choice, model: str, stop_sequences: Sequence[str], max_tokens: int
    ) -> None:
        self.choice = choice
        self.id = random_id("msg_")
        self.model = model
        self.stop_sequences = stop_sequences
        self.max_tokens = max_tokens
        self._parts: list[Piece] = []  # of a whole answer
        self._block: str | int | None = None  # open: "text", "thinking" or the number of a call
        self._n_blocks = 0
        self._thought = hashlib.sha256()

    def chunks(self, index: int, event: Event) -> Iterable[object]:
        pieces = self.choice.take(event)
        if type(event) is Started:
            return ({"type": "message_start", "message": self._message([])},)
        events = [part for piece in pieces for part in self._piece(piece)]
        return [*events, *self._end()] if type(event) is Finished else events

    def last_chunks(self) -> Iterable[object]:
        return ({"type": "message_stop"},)

    def failed(self, error: ApiError) -> Iterable[object]:
        return (error_body(error),)

    def take(self, index: int, event: Event) -> None:
        self._parts.extend(self.choice.take(event))

    def whole(self) -> object:
        return self._message(content(join(self._parts))) | self._stop()

    def _message(self, blocks: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": blocks,
            "stop_reason": None,
            "stop_sequence": None,
            "usage": self._usage(),
        }

    def _usage(self) -> dict[str, int]:
        started = self.choice.started
        return {
            "input_tokens": started.n_prompt - started.n_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": started.n_cached,
            "output_tokens": self.choice.timings.predicted_n,
        }

    def _stop(self) -> dict[str, str | None]:
        """``stop_sequence`` only for one of the client's: templates have stops of their own.

        A context that has shifted is cut too, and still the answer may end at max_tokens.
        """
        finished = self.choice.finished
        assert finished is not None
        word = finished.stopping_word if finished.stopping_word in self.stop_sequences else None
        if word is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": word}
        if finished.reason == "limit":
            n_predicted = finished.timings.predicted_n
            is_full = finished.truncated and not 0 <= self.max_tokens <= n_predicted
            full = "model_context_window_exceeded" if is_full else "max_tokens"
            return {"stop_reason": full, "stop_sequence": None}
        called = self.choice.finish_reason == "tool_calls"
        return {"stop_reason": "tool_use" if called else "end_turn", "stop_sequence": None}

    def _piece(self, piece: Piece) -> Iterable[dict[str, Any]]:
        if piece.text:
            yield from self._open("text", {"type": "text", "text": ""})
            yield self._delta("text_delta", "text", piece.text)
        elif piece.reasoning:
            self._thought.update(piece.reasoning.encode())
            yield from self._open("thinking", thinking_block("", ""))
            yield self._delta("thinking_delta", "thinking", piece.reasoning)
        for call in piece.calls:
            yield from self._open(call.index, tool_block(call, {}))
            if call.arguments:
                yield self._delta("input_json_delta", "partial_json", call.arguments)

    def _open(self, block: str | int, opening: dict[str, Any]) -> Iterable[dict[str, Any]]:
        if self._block != block:
            yield from self._close()
            self._block = block
            self._n_blocks += 1
            index = self._n_blocks - 1
            yield {"type": "content_block_start", "index": index, "content_block": opening}

    def _close(self) -> Iterable[dict[str, Any]]:
        if self._block is None:
            return
        if self._block == "thinking":
            yield self._delta("signature_delta", "signature", signature(self._thought))
        yield {"type": "content_block_stop", "index": self._n_blocks - 1}
        self._block = None

    def _delta(self, kind: str, name: str, text: str) -> dict[str, Any]:
        delta = {"type": kind, name: text}
        return {"type": "content_block_delta", "index": self._n_blocks - 1, "delta": delta}

    def _end(self) -> Iterable[dict[str, Any]]:
        yield from self._close()
        yield {"type": "message_delta", "delta": self._stop(), "usage": self._usage()}


def content(piece: Piece) -> list[dict[str, Any]]:
    """The blocks of a whole answer."""
    blocks = []
    if piece.reasoning:
        thought = hashlib.sha256(piece.reasoning.encode())
        blocks.append(thinking_block(piece.reasoning, signature(thought)))
    if piece.text:
        blocks.append({"type": "text", "text": piece.text})
    return blocks + [tool_block(call, arguments_object(call)) for call in piece.calls]


def thinking_block(thinking: str, signed: str) -> dict[str, Any]:
    return {"type": "thinking", "thinking": thinking, "signature": signed}


def tool_block(call: ToolCallDelta, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "tool_use", "id": call.id, "name": call.name, "input": given}


def signature(thought: Any) -> str:
    """Clients send it back with the thinking and want one; nothing here depends on it."""
    return base64.b64encode(thought.digest()).decode()
