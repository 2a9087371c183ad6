"""A response as OpenAI writes it: the answer's pieces to items and events.

A response is a list of output items: reasoning, a message, function calls. In a stream each
is added, grows and is done before the next begins; every event has a number.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gguf_serve.engine.chat.delta import ToolCallDelta
from gguf_serve.engine.request import Event, Finished, Progress, Started
from gguf_serve.server.dialects.responses.input import echoed
from gguf_serve.server.dialects.responses.searching import SOURCES, ended_item, search_item
from gguf_serve.server.dialects.responses.tools import custom_input, custom_names, namespaced
from gguf_serve.server.dialects.rounds import Rounds
from gguf_serve.server.dialects.sealed import sealed
from gguf_serve.server.errors import ApiError
from gguf_serve.server.http.framing import NAMED_SSE
from gguf_serve.server.requests.answer import (
    Piece,
    join,
    prompt_progress,
    random_id,
    timings,
)
from gguf_serve.server.requests.generate import Options
from gguf_serve.server.requests.logprobs import content_logprobs


class Responses:
    framing = NAMED_SSE

    def __init__(
        self,
        rounds: Rounds,
        model: str,
        data: Mapping[str, Any],
        options: Options,
        on_end: Callable[[dict[str, Any]], None] = lambda response: None,
    ) -> None:
        """``on_end``: gets the response when it is complete, or cut off."""
        self.rounds = rounds
        self.options = options
        self.id = random_id("resp_")
        self._on_end = on_end
        self._head: dict[str, Any] = {
            "id": self.id,
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            **dict(echoed(data)),
        }
        self._namespaced = namespaced(data)
        self._custom = custom_names(data)
        included = data.get("include") or []
        self._seals = "reasoning.encrypted_content" in included
        self._shows_sources = SOURCES in included
        self._n_searching = 0  # items at the end of those that are done whose search goes on
        self._parts: list[Piece] = []  # of a whole answer, or of the item that grows
        self._open: dict[str, Any] | None = None  # the item that grows
        self._output: list[dict[str, Any]] = []  # items that are done
        self._n_events = 0

    def chunks(self, index: int, event: Event) -> Iterable[object]:
        pieces = self.rounds.take(event)
        if type(event) is Started and len(self.rounds.choices) == 1:
            return [self._of_response(name, "in_progress") for name in ("created", "in_progress")]
        if type(event) is Started:
            return list(self._searched())
        if type(event) is Progress:
            return [self._progress(event)]
        events = [part for piece in pieces for part in self._piece(piece)]
        if type(event) is Finished:
            events += [*self._close(), *self._searching()]
        return events

    def last_chunks(self) -> Iterable[object]:
        yield from self._searched()
        status = self._status()
        self._on_end(self.state(status))
        yield self._of_response(status, status) | {"timings": timings(self.rounds.choices)}

    def failed(self, error: ApiError) -> Iterable[object]:
        reason = {"code": error.type, "message": error.message}
        return (self._of_response("failed", "failed", error=reason),)

    def take(self, index: int, event: Event) -> None:
        self._parts += self.rounds.take(event)
        if type(event) is Started:
            list(self._searched())
        elif type(event) is Finished:
            self._take_round()
            list(self._searching())

    def whole(self) -> object:
        list(self._searched())
        response = self._response(self._status())
        self._on_end(response)
        return response | {"timings": timings(self.rounds.choices)}

    def _take_round(self) -> None:
        answer = join(self._parts)
        if answer.reasoning:
            self._output.append(self._done(reasoning_item(), Piece(reasoning=answer.reasoning)))
        if answer.text:
            text = Piece(answer.text, scores=answer.scores)
            self._output.append(self._done(message_item(), text))
        for call in answer.calls:
            self._output.append(self._done(self._call_item(call), Piece(calls=(call,))))
        self._parts = []

    def state(self, status: str, error: dict[str, str] | None = None) -> dict[str, Any]:
        """The response as far as it is there."""
        # A copy of the items: later events add to the list.
        return self._response(status, error) | {"output": list(self._output)}

    def cancelled(self) -> dict[str, Any]:
        """The event that ends a stream that somebody has cancelled."""
        return self._of_response("cancelled", "cancelled")

    # The response

    def _status(self) -> str:
        return "incomplete" if self.rounds.finish_reason == "length" else "completed"

    def _response(self, status: str, error: dict[str, str] | None = None) -> dict[str, Any]:
        ended = status in ("completed", "incomplete")
        cut = {"reason": "max_output_tokens"} if status == "incomplete" else None
        response = self._head | {"status": status, "error": error, "incomplete_details": cut}
        response["output"] = self._output
        response["usage"] = self._usage() if ended else None
        return response | ({"completed_at": int(time.time())} if ended else {})

    def _usage(self) -> dict[str, Any]:
        """Of all rounds together."""
        choices = self.rounds.choices
        n_prompt = sum(choice.started.n_prompt for choice in choices)
        n_cached = sum(choice.started.n_cached for choice in choices)
        n_answer = sum(choice.timings.predicted_n for choice in choices)
        n_reasoning = sum(choice.n_reasoning for choice in choices)
        return {
            "input_tokens": n_prompt,
            "input_tokens_details": {"cached_tokens": n_cached},
            "output_tokens": n_answer,
            "output_tokens_details": {"reasoning_tokens": n_reasoning},
            "total_tokens": n_prompt + n_answer,
        }

    # Its events

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        self._n_events += 1
        return {"type": f"response.{kind}", "sequence_number": self._n_events - 1, **fields}

    def _of_response(
        self, kind: str, status: str, error: dict[str, str] | None = None
    ) -> dict[str, Any]:
        return self._event(kind, response=self.state(status, error))

    def _progress(self, event: Progress) -> dict[str, Any]:
        made = self._of_response("in_progress", "in_progress")
        made["prompt_progress"] = prompt_progress(event)
        return made | {"timings": timings([self.rounds.choice])}

    def _of_item(self, kind: str, **fields: Any) -> dict[str, Any]:
        assert self._open is not None
        return self._event(kind, item_id=self._open["id"], output_index=len(self._output), **fields)

    def _piece(self, piece: Piece) -> Iterable[dict[str, Any]]:
        if piece.text:
            yield from self._begin("message", message_item, output_text(""))
            self._parts.append(piece)
            logprobs = self._logprobs(piece)
            yield self._of_item(
                "output_text.delta", content_index=0, delta=piece.text, logprobs=logprobs
            )
        elif piece.reasoning:
            yield from self._begin("reasoning", reasoning_item, reasoning_part(""))
            self._parts.append(piece)
            yield self._of_item("reasoning_text.delta", content_index=0, delta=piece.reasoning)
        for call in piece.calls:
            if call.id:
                yield from self._close()
                self._open = self._call_item(call)
                yield self._added()
            self._parts.append(Piece(calls=(call,)))
            # A custom tool's input is a text within its arguments, which are read at their end.
            if call.arguments and self._open and self._open["type"] == "function_call":
                yield self._of_item("function_call_arguments.delta", delta=call.arguments)

    def _begin(self, kind: str, make: Any, part: dict[str, Any]) -> Iterable[dict[str, Any]]:
        """Add an item with one part of content, unless it is the one that grows."""
        if self._open is not None and self._open["type"] == kind:
            return
        yield from self._close()
        self._open = make()
        yield self._added()
        yield self._of_item("content_part.added", content_index=0, part=part)

    def _added(self) -> dict[str, Any]:
        return self._event("output_item.added", output_index=len(self._output), item=self._open)

    def _close(self) -> Iterable[dict[str, Any]]:
        if self._open is None:
            return
        item = self._done(self._open, join(self._parts))
        if item["type"] == "custom_tool_call":
            yield self._of_item("custom_tool_call_input.delta", delta=item["input"])
            yield self._of_item("custom_tool_call_input.done", input=item["input"])
        elif item["type"] == "function_call":
            fields = {"name": item["name"], "arguments": item["arguments"]}
            yield self._of_item("function_call_arguments.done", **fields)
        else:
            (part,) = item["content"]
            text: dict[str, Any] = {"content_index": 0, "text": part["text"]}
            if item["type"] == "message":
                text["logprobs"] = part["logprobs"]
            yield self._of_item(f"{part['type']}.done", **text)
            yield self._of_item("content_part.done", content_index=0, part=part)
        yield self._event("output_item.done", output_index=len(self._output), item=item)
        self._output.append(item)
        self._open, self._parts = None, []

    def _searching(self) -> Iterable[dict[str, Any]]:
        """The searches that the model has asked for begin."""
        self._n_searching = len(self.rounds.called)
        for search in self.rounds.called:
            item = search_item(search)
            self._output.append(item)
            index = len(self._output) - 1
            yield self._event("output_item.added", output_index=index, item=item)
            for state in ("in_progress", "searching"):
                yield self._event(
                    f"web_search_call.{state}", output_index=index, item_id=item["id"]
                )

    def _searched(self) -> Iterable[dict[str, Any]]:
        first = len(self._output) - self._n_searching
        for index, search in enumerate(self.rounds.shown(), first):
            item = ended_item(self._output[index], search, self._shows_sources)
            self._output[index] = item
            name = "web_search_call.completed"
            yield self._event(name, output_index=index, item_id=item["id"])
            yield self._event("output_item.done", output_index=index, item=item)

    def _done(self, item: dict[str, Any], piece: Piece) -> dict[str, Any]:
        """The item with all that belongs to it."""
        if item["type"] == "reasoning":
            item = item | {"content": [reasoning_part(piece.reasoning)]}
            if self._seals:
                item["encrypted_content"] = sealed(piece.reasoning)
        elif item["type"] == "message":
            part = output_text(piece.text) | {"logprobs": self._logprobs(piece)}
            item = item | {"content": [part]}
        elif item["type"] == "custom_tool_call":
            item = item | {"input": custom_input(piece.calls[0].arguments)}
        else:
            item = item | {"arguments": piece.calls[0].arguments}
        return item | {"status": self._status() if self.rounds.choice.finished else "completed"}

    def _call_item(self, call: ToolCallDelta) -> dict[str, Any]:
        item = call_item(call, is_custom=call.name in self._custom)
        return item | self._namespaced.get(call.name, {})

    def _logprobs(self, piece: Piece) -> list[dict[str, object]]:
        n_top = self.options.n_top
        return [] if n_top is None else content_logprobs(piece.scores, n_top, False)


def reasoning_item() -> dict[str, Any]:
    return {"type": "reasoning", "id": random_id("rs_"), "summary": [], "content": []}


def message_item() -> dict[str, Any]:
    item = {"type": "message", "id": random_id("msg_"), "role": "assistant", "content": []}
    return item | {"status": "in_progress"}


def call_item(call: ToolCallDelta, *, is_custom: bool) -> dict[str, Any]:
    kind, prefix, given = "function_call", "fc_", "arguments"
    if is_custom:
        kind, prefix, given = "custom_tool_call", "ctc_", "input"
    return {
        "type": kind,
        "id": random_id(prefix),
        "call_id": call.id,
        "name": call.name,
        given: "",
        "status": "in_progress",
    }


def output_text(text: str) -> dict[str, Any]:
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": []}


def reasoning_part(text: str) -> dict[str, Any]:
    return {"type": "reasoning_text", "text": text}
