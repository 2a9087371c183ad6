"""The bridge between the engine's thread and the loop, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gguf_serve.engine.errors import ContextOverflowError
from gguf_serve.engine.request import Delta, Event, Failed, Finished, Request, Started, Timings
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.server.http.stream import EventStream, Inbox

BODY = {"messages": [{"role": "user", "content": "hi"}]}


def until(condition: Any) -> None:
    """Waits for the condition, less long than a script that nobody cancels."""
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.005)


def waits(before: list[Event]) -> Any:
    """A script that says nothing more until it is cancelled."""

    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        yield from before
        cancelled.wait(20)
        yield Finished("cancelled", Timings())

    return script


def open_request(
    url: str, body: dict[str, Any], path: str = "/v1/chat/completions"
) -> socket.socket:
    """A request on a bare socket, that can be dropped at any point."""
    host, _, port = url.removeprefix("http://").partition(":")
    data = json.dumps(body).encode()
    connection = socket.create_connection((host, int(port)))
    head = f"POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(data)}\r\n\r\n"
    connection.sendall(head.encode() + data)
    return connection


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("before", [[], [Started(3, 0, 0)], [Started(3, 0, 0), Delta("a", (97,))]])
def test_a_client_that_goes_away_frees_its_slot(
    serve: Any, fakes: Any, stream: bool, before: list[Event]
) -> None:
    engine = fakes.engine(waits(before))
    connection = open_request(serve(engine), BODY | {"stream": stream})
    until(lambda: engine.n_running == 1)
    time.sleep(0.05)
    connection.close()
    until(lambda: engine.n_running == 0)
    assert [number for number, _ in engine.cancelled] == [0]


def test_all_choices_are_cancelled(serve: Any, fakes: Any) -> None:
    engine = fakes.engine(waits([Started(3, 0, 0)]))
    connection = open_request(serve(engine), BODY | {"stream": True, "n": 3})
    until(lambda: engine.n_running == 3)
    connection.close()
    until(lambda: engine.n_running == 0)


def test_embeddings_are_cancelled(serve: Any, fakes: Any) -> None:
    engine = fakes.engine(waits([Started(3, 0, 0)]))
    connection = open_request(serve(engine), {"input": ["a", "b"]}, "/v1/embeddings")
    until(lambda: engine.n_running == 2)
    connection.close()
    until(lambda: engine.n_running == 0)


def test_nothing_is_cancelled_after_the_end(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    url = serve(engine)
    for stream in (False, True):
        httpx.post(url + "/v1/chat/completions", json=BODY | {"stream": stream})
    assert engine.cancelled == []


def test_a_stopping_engine_ends_streams_with_an_error(serve: Any, fakes: Any) -> None:
    engine = fakes.engine(waits([Started(3, 0, 0), Delta("a", (97,))]))
    url = serve(engine)
    body = BODY | {"stream": True}
    with httpx.stream("POST", url + "/v1/chat/completions", json=body, timeout=20) as response:
        lines = response.iter_lines()
        next(lines)  # it has begun
        engine.close()
        last = [line for line in lines if line][-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == 503
    assert httpx.post(url + "/v1/chat/completions", json=BODY).status_code == 503


class Collector:
    """Stands for an engine whose events the test puts itself."""

    def __init__(self, room: int = 9) -> None:
        self.room = room
        self.on_event: list[Any] = []
        self.cancelled: list[int] = []

    def submit(self, request: Request, on_event: Any) -> int:
        if len(self.on_event) == self.room:
            raise ContextOverflowError(5, 4)
        self.on_event.append(on_event)
        return len(self.on_event) - 1

    def cancel(self, ticket: int) -> None:
        self.cancelled.append(ticket)


def test_events_that_wait_come_as_one_batch() -> None:
    async def run() -> list[Any]:
        engine = Collector()
        stream = EventStream(engine, Inbox(asyncio.get_running_loop()))  # type: ignore[arg-type]
        await stream.submit([Request((1,)), Request((2,))])
        engine.on_event[0](Started(1, 0, 0))
        engine.on_event[1](Started(1, 0, 1))
        engine.on_event[0](Delta("a", (97,)))
        batches = [await anext(stream)]
        engine.on_event[0](Finished("eos", Timings()))
        engine.on_event[1](Finished("eos", Timings()))
        return batches + [batch async for batch in stream]

    batches = asyncio.run(run())
    assert [[index for index, _ in batch] for batch in batches] == [[0, 1, 0], [0, 1]]


def test_one_wake_up_carries_many_events() -> None:
    async def run() -> int:
        loop = asyncio.get_running_loop()
        engine = Collector()
        inbox = Inbox(loop)
        stream = EventStream(engine, inbox)  # type: ignore[arg-type]
        await stream.submit([Request((1,))])
        wakes = 0
        original = loop.call_soon_threadsafe

        def counted(*args: Any) -> Any:
            nonlocal wakes
            wakes += 1
            return original(*args)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign, assignment]
        for _ in range(100):
            engine.on_event[0](Delta("a", (97,)))
        assert len(await anext(stream)) == 100
        return wakes

    assert asyncio.run(run()) == 1


def test_a_refused_request_cancels_those_before_it() -> None:
    async def run() -> Collector:
        engine = Collector(room=2)
        stream = EventStream(engine, Inbox(asyncio.get_running_loop()))  # type: ignore[arg-type]
        with pytest.raises(ContextOverflowError):
            await stream.submit([Request((1,))] * 3)
        return engine

    assert asyncio.run(run()).cancelled == [0, 1]


def test_the_loop_goes_on_between_requests() -> None:
    async def run() -> int:
        engine = Collector(room=1000)
        stream = EventStream(engine, Inbox(asyncio.get_running_loop()))  # type: ignore[arg-type]
        task = asyncio.create_task(stream.submit([Request((1,))] * 1000))
        await asyncio.sleep(0)
        stream.gone = True  # the client leaves
        await task
        return len(engine.on_event)

    assert 0 < asyncio.run(run()) < 100


SLOW = Request((1,), sampling=SamplingParams(dry_multiplier=1.0))  # submitted in a thread


def test_a_request_that_has_ended_before_its_ticket_is_there() -> None:
    class Quick(Collector):
        def submit(self, request: Request, on_event: Any) -> int:
            on_event(Finished("eos", Timings()))
            time.sleep(0.05)
            return super().submit(request, on_event)

    async def run() -> list[Any]:
        stream = EventStream(Quick(), Inbox(asyncio.get_running_loop()))  # type: ignore[arg-type]
        await stream.submit([SLOW])
        async with asyncio.timeout(20):
            return [batch async for batch in stream]

    assert len(asyncio.run(run())) == 1


def test_a_client_that_goes_away_before_the_ticket_is_there() -> None:
    submits = threading.Event()

    class Slow(Collector):
        def submit(self, request: Request, on_event: Any) -> int:
            submits.wait(20)
            return super().submit(request, on_event)

    async def gone() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def run() -> Slow:
        engine = Slow()
        stream = EventStream(engine, Inbox(asyncio.get_running_loop()))  # type: ignore[arg-type]
        task = asyncio.create_task(stream.submit([SLOW, SLOW]))
        await asyncio.sleep(0)
        await stream.watch(gone)
        submits.set()
        await task
        return engine

    engine = asyncio.run(run())
    assert (len(engine.on_event), engine.cancelled) == (1, [0])


def test_events_after_the_loop_has_closed_are_dropped() -> None:
    async def make() -> Collector:
        engine = Collector()
        stream = EventStream(engine, Inbox(asyncio.get_running_loop()))  # type: ignore[arg-type]
        await stream.submit([Request((1,))])
        return engine

    engine = asyncio.run(make())
    engine.on_event[0](Started(1, 0, 0))  # does not raise in the engine's thread


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v1/chat/completions", {"error": {"code": 400, "type": "invalid_request_error"}}),
        ("/completion", {"error": {"code": 400, "type": "invalid_request_error"}}),
        ("/v1/responses", {"error": {"code": 400, "type": "invalid_request_error"}}),
        ("/v1/messages", {"type": "error", "error": {"type": "invalid_request_error"}}),
        ("/api/chat", {"error": "none is left"}),
    ],
)
def test_the_end_of_a_request_by_its_own_fault(
    serve: Any, fakes: Any, path: str, error: dict[str, Any]
) -> None:
    """As when a grammar and a logit bias leave no token: in the shape of each dialect."""

    def script(request: Request, cancelled: threading.Event) -> Iterator[Any]:
        yield Started(3, 0, 0)
        yield Failed("none is left", by_request=True)

    name = {"/completion": "prompt", "/v1/responses": "input"}.get(path, "messages")
    body = {name: [{"role": "user", "content": "?"}] if name == "messages" else "?"}
    url = serve(fakes.engine(script)) + path
    response = httpx.post(url, json=body | {"stream": False})
    assert response.status_code == 400
    found = response.json()
    text = httpx.post(url, json=body | {"stream": True}).text
    last = text.strip().splitlines()[-1].removeprefix("data: ")
    assert "none is left" in last
    assert path == "/v1/responses" or json.loads(last) == found
    if isinstance(found["error"], dict):
        assert found["error"].pop("message") == "none is left"
    assert found == error
