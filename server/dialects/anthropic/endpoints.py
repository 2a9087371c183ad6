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

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from gguf_serve.engine.chat.delta import ToolCallDelta
from gguf_serve.engine.request import Event, Finished, Started
from gguf_serve.server.dialects.anthropic.errors import error_body
from gguf_serve.server.dialects.anthropic.input import ALSO, UNSUPPORTED, MessagesFields, chat_body
from gguf_serve.server.dialects.anthropic.searching import result_block, search_block, searches
from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.dialects.rounds import Rounds, let_go_on
from gguf_serve.server.errors import ApiError, json_response
from gguf_serve.server.http.framing import EVENT_STREAM, Framing, named_sse
from gguf_serve.server.requests.answer import Piece, arguments_object, join, random_id
from gguf_serve.server.requests.chat import prepare
from gguf_serve.server.requests.conversation import read_chat
from gguf_serve.server.requests.fields import convert, refuse
from gguf_serve.server.requests.generate import Options, engine_requests, submit
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


async def messages(service: Service, http: HttpRequest) -> ASGIApp:
    """Go on with a conversation, in Anthropic's form."""
    data = await service.read_object(http)
    refuse(data, UNSUPPORTED)
    fields = convert(data, MessagesFields)
    chat = read_chat(chat_body(fields, data, searches=service.tools.searches_web))
    job = await prepare(service, chat)
    rounds = Rounds(job.choices()[0], await searches(fields.tools, service.tools))
    dialect = Messages(rounds, service.model_name, fields.stop_sequences or [], fields.max_tokens)
    requests = await engine_requests(service, chat, job, Options())
    stream = service.event_stream()
    let_go_on(rounds, service, chat, Options(), stream)
    return await submit(service, chat, requests, dialect, stream)


async def count_tokens(service: Service, http: HttpRequest) -> Response:
    """Count the tokens of a conversation."""
    data = await service.read_object(http)
    refuse(data, UNSUPPORTED)
    fields = convert(data, MessagesFields)
    chat = read_chat(chat_body(fields, data, searches=service.tools.searches_web))
    job = await prepare(service, chat, counts=True)
    return json_response({"input_tokens": len(job.prompts[0].ids)})


class Messages:
    """The dialect: a block of content for each kind of piece, in their order."""

    framing = ANTHROPIC_SSE

    def __init__(
        self, rounds: Rounds, model: str, stop_sequences: Sequence[str], max_tokens: int
    ) -> None:
        self.rounds = rounds
        self.id = random_id("msg_")
        self.model = model
        self.stop_sequences = stop_sequences
        self.max_tokens = max_tokens
        self._parts: list[Piece] = []  # of a whole answer, of its latest round
        self._blocks: list[dict[str, Any]] = []  # of those before
        self._block: str | int | None = None  # open: "text", "thinking" or the number of a call
        self._n_blocks = 0
        self._thought = hashlib.sha256()

    def chunks(self, index: int, event: Event) -> Iterable[object]:
        pieces = self.rounds.take(event)
        if type(event) is Started and len(self.rounds.choices) == 1:
            return ({"type": "message_start", "message": self._message([])},)
        if type(event) is Started:
            return self._whole_blocks(map(result_block, self.rounds.shown()))
        events = [part for piece in pieces for part in self._piece(piece)]
        if type(event) is Finished:
            events += self._close()
            events += self._whole_blocks(map(search_block, self.rounds.called))
        return events

    def last_chunks(self) -> Iterable[object]:
        yield from self._whole_blocks(map(result_block, self.rounds.shown()))
        yield {"type": "message_delta", "delta": self._stop(), "usage": self._usage()}
        yield {"type": "message_stop"}

    def failed(self, error: ApiError) -> Iterable[object]:
        return (error_body(error),)

    def take(self, index: int, event: Event) -> None:
        self._parts += self.rounds.take(event)
        if type(event) is Started:
            self._blocks += map(result_block, self.rounds.shown())
        elif type(event) is Finished:
            self._blocks += content(join(self._parts))
            self._blocks += map(search_block, self.rounds.called)
            self._parts = []

    def whole(self) -> object:
        self._blocks += map(result_block, self.rounds.shown())
        return self._message(self._blocks) | self._stop()

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

    def _usage(self) -> dict[str, Any]:
        """Of all rounds together."""
        choices = self.rounds.choices
        n_cached = sum(choice.started.n_cached for choice in choices)
        usage = {
            "input_tokens": sum(choice.started.n_prompt for choice in choices) - n_cached,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": n_cached,
            "output_tokens": sum(choice.timings.predicted_n for choice in choices),
        }
        if self.rounds.searches is None:
            return usage
        return usage | {"server_tool_use": {"web_search_requests": self.rounds.n_searched}}

    def _stop(self) -> dict[str, str | None]:
        """``stop_sequence`` only for one of the client's: templates have stops of their own.

        A context that has shifted is cut too, and still the answer may end at max_tokens.
        """
        finished = self.rounds.choice.finished
        assert finished is not None
        word = finished.stopping_word if finished.stopping_word in self.stop_sequences else None
        if word is not None:
            return {"stop_reason": "stop_sequence", "stop_sequence": word}
        if finished.reason == "limit":
            n_predicted = finished.timings.predicted_n
            is_full = finished.truncated and not 0 <= self.max_tokens <= n_predicted
            full = "model_context_window_exceeded" if is_full else "max_tokens"
            return {"stop_reason": full, "stop_sequence": None}
        called = self.rounds.finish_reason == "tool_calls"
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

    def _whole_blocks(self, blocks: Iterable[dict[str, Any]]) -> Iterable[dict[str, Any]]:
        """Blocks that are there at once; only the input of a call comes as a delta."""
        for block in blocks:
            given = block.get("input")
            opening = block if given is None else block | {"input": {}}
            yield from self._open(self._n_blocks, opening)
            if given is not None:
                text = msgspec.json.encode(given).decode()
                yield self._delta("input_json_delta", "partial_json", text)
            yield from self._close()


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
