"""An answer of several rounds: between two, the server runs what the model has called.

A request to the engine is one round. When it has ended with calls of the server's own tools, these
are run, the conversation goes on with what they have found, and the next round's events follow in
the same stream. Calls of the client's tools end the answer, as they do without rounds.
"""

from __future__ import annotations

import asyncio
from functools import partial
from typing import Any

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.chat.delta import ToolCallDelta
from gguf_serve.engine.errors import ContextOverflowError, EngineError
from gguf_serve.engine.request import Event, Failed, Finished
from gguf_serve.server.errors import ApiError
from gguf_serve.server.http.stream import EventStream
from gguf_serve.server.requests.answer import Choice, Piece, arguments_object, join
from gguf_serve.server.requests.chat import prepare
from gguf_serve.server.requests.conversation import Chat
from gguf_serve.server.requests.generate import Options, engine_requests
from gguf_serve.server.requests.service import Service
from gguf_serve.server.tools.search import NAME, Found, Searches

MOST_ROUNDS = 10  # the last one is without the server's tools, so that it answers


class Search(Struct, frozen=True):
    """A call of web_search, and what it has found; None: it has not ended."""

    id: str
    query: str
    found: Found | None = None


class Rounds:
    """What a dialect translates: the events of each round become pieces, without the calls that
    are the server's, which are ``called`` when the round has ended and ``ran`` after that."""

    def __init__(self, choice: Choice, searches: Searches | None = None) -> None:
        self.choices = [choice]
        self.called: list[Search] = []  # of the round that has ended
        self.ran: list[Search] = []  # what the dialect has not shown yet
        self.searches = searches  # None: the server has no tools here
        self.n_searched = 0
        self.is_done_with_calls = False  # those of this round are all the server's
        self._pieces: list[Piece] = []  # of this round
        self._own: set[int] = set()  # numbers of its calls of web_search

    @property
    def choice(self) -> Choice:
        """That of the latest round."""
        return self.choices[-1]

    @property
    def message(self) -> dict[str, Any]:
        """What the model has said in this round, as a message of the conversation."""
        whole = join(self._pieces)
        message: dict[str, Any] = {"role": "assistant", "content": whole.text}
        if whole.reasoning:
            message["reasoning_content"] = whole.reasoning
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in whole.calls
        ]
        return message

    @property
    def finish_reason(self) -> str | None:
        """OpenAI's; "tool_calls" if there are any of the client's."""
        reason = self.choice.finish_reason
        return "stop" if reason == "tool_calls" and self.is_done_with_calls else reason

    def take(self, event: Event) -> list[Piece]:
        pieces = list(self.choice.take(event))
        if self.searches is None:
            return pieces
        self._pieces += pieces
        if type(event) is Finished and self.choice.finish_reason == "tool_calls":
            calls = join(self._pieces).calls
            own = [call for call in calls if call.name == NAME]
            self.is_done_with_calls = len(own) == len(calls)
            if len(self.choices) < MOST_ROUNDS:
                self.called = [Search(call.id, query(call)) for call in own]
        shown = [replace(piece, calls=self._clients(piece.calls)) for piece in pieces]
        return [piece for piece in shown if piece.shows or piece.tokens]

    def begin(self, choice: Choice) -> None:
        """The next round."""
        self.choices.append(choice)
        self.called, self._pieces, self._own = [], [], set()
        self.is_done_with_calls = False

    def shown(self) -> list[Search]:
        """What has been run and is shown now."""
        ran, self.ran = self.ran, []
        return ran

    def _clients(self, calls: tuple[ToolCallDelta, ...]) -> tuple[ToolCallDelta, ...]:
        self._own |= {call.index for call in calls if call.name == NAME}
        return tuple(call for call in calls if call.index not in self._own)


def let_go_on(
    rounds: Rounds, service: Service, chat: Chat, options: Options, stream: EventStream
) -> None:
    """Have the stream of the first round go on with others."""
    stream.go_on = partial(_Going(rounds, service, chat, options, stream).go_on)


class _Going(Struct):
    rounds: Rounds
    service: Service
    chat: Chat
    options: Options
    stream: EventStream

    async def go_on(self) -> None:
        rounds = self.rounds
        if not rounds.called:
            return
        rounds.ran = await self._run(rounds.called)
        rounds.n_searched += len(rounds.ran)
        if not rounds.is_done_with_calls:
            return
        try:
            await self._begin(rounds.ran)
        except ContextOverflowError:
            full = Found(text="There is no room for what was found: answer without it.")
            await self._begin_or_fail([replace(one, found=full) for one in rounds.ran])
        except (ApiError, EngineError) as error:
            self._fail(error)

    async def _run(self, called: list[Search]) -> list[Search]:
        searches = self.rounds.searches
        assert searches is not None
        # Characters: what is found takes a quarter of the context at most.
        most_text = self.service.engine.n_ctx // (4 * len(called)) * 2
        found = await asyncio.gather(*(searches.find(one.query, most_text) for one in called))
        return [replace(one, found=what) for one, what in zip(called, found, strict=True)]

    async def _begin_or_fail(self, ran: list[Search]) -> None:
        try:
            await self._begin(ran)
        except (ApiError, EngineError) as error:
            self._fail(error)

    async def _begin(self, ran: list[Search]) -> None:
        rounds = self.rounds
        results = [
            {"role": "tool", "tool_call_id": one.id, "content": text_of(one.found)} for one in ran
        ]
        chat = replace(
            self.chat,
            messages=[*self.chat.messages, rounds.message, *results],
            # What was to be called has been.
            tool_choice="none" if len(rounds.choices) + 1 >= MOST_ROUNDS else "auto",
        )
        job = await prepare(self.service, chat)
        requests = await engine_requests(self.service, chat, job, self.options)
        n_said = sum(choice.timings.predicted_n for choice in rounds.choices)
        await self.stream.submit(
            replace(request, max_tokens=max(request.max_tokens - n_said, 1))
            if request.max_tokens > 0
            else request
            for request in requests
        )
        self.chat = chat
        rounds.begin(job.choices()[0])

    def _fail(self, error: Exception) -> None:
        message = error.message if isinstance(error, ApiError) else str(error)
        self.stream.deliver(0, Failed(message, by_request=True))


def query(call: ToolCallDelta) -> str:
    return str(arguments_object(call).get("query", ""))


def text_of(found: Found | None) -> str:
    if found is None:
        return ""
    return f"Error: {found.error}" if found.error else found.text
