"""Streamed answers: their bytes, pings, and ends that no engine makes."""

from __future__ import annotations

import asyncio
import re
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gguf_serve.engine.request import Delta, Event, Finished, Request, Started, Timings
from gguf_serve.server.http.framing import NDJSON, SSE, Framing
from gguf_serve.server.http.reply import Reply
from gguf_serve.server.http.stream import EventStream, Inbox

BODY = {"messages": [{"role": "user", "content": "hi"}]}


class Silence:
    """A script that says something, and the rest when it is told to, or after some seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.ends = seconds, threading.Event()

    def __call__(self, request: Request, cancelled: threading.Event) -> Iterator[Event]:
        yield Started(3, 0, 0)
        yield Delta("a", (97,))
        self.ends.wait(self.seconds)
        yield Delta("b", (98,))
        yield Finished("eos", Timings(predicted_n=2))


def test_pings_fill_silence(serve: Any, fakes: Any) -> None:
    """As often as the server says, or the request."""
    for options, fields in (({"ping_interval": 0.1}, {}), ({}, {"sse_ping_interval": 0.1})):
        script = Silence(20)
        url = serve(fakes.engine(script), **options) + "/v1/chat/completions"
        begin = time.monotonic()
        with httpx.stream("POST", url, json=BODY | {"stream": True} | fields) as answer:
            lines = []
            for line in answer.iter_lines():
                lines.append(line)
                if lines.count(":") == 2:
                    script.ends.set()
        assert time.monotonic() - begin > 0.19  # not more often
        assert sum(line.startswith("data: ") for line in lines) == 5
        assert lines.count(":") >= 2


@pytest.mark.parametrize("interval", [30, -1])
def test_a_short_silence_has_no_pings(serve: Any, fakes: Any, interval: float) -> None:
    url = serve(fakes.engine(Silence(0.35)), ping_interval=interval)
    text = httpx.post(url + "/v1/chat/completions", json=BODY | {"stream": True}).text
    assert text.count(":\n\n") == 0
    assert text.count("data: ") == 5


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/api/chat"])
def test_the_bytes_of_a_stream(serve: Any, fakes: Any, path: str) -> None:
    url = serve(fakes.engine(fakes.say("ab")))
    host, _, port = url.removeprefix("http://").partition(":")
    body = b'{"messages":[{"role":"user","content":"hi"}],"stream":true}'
    with socket.create_connection((host, int(port))) as connection:
        connection.sendall(b"POST %b HTTP/1.1\r\nHost: x\r\n" % path.encode())
        connection.sendall(b"Connection: close\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body))
        answer = b"".join(iter(lambda: connection.recv(9999), b""))
    head, _, chunked = answer.partition(b"\r\n\r\n")
    is_sse = path == "/v1/chat/completions"
    media_type = b"text/event-stream; charset=utf-8" if is_sse else b"application/x-ndjson"
    status, *headers = head.split(b"\r\n")
    assert status == b"HTTP/1.1 200 OK"
    others = (b"date: ", b"server: ", b"vary: ")
    assert sorted(header for header in headers if not header.startswith(others)) == [
        b"cache-control: no-cache",
        b"connection: close",
        b"content-type: " + media_type,
        b"transfer-encoding: chunked",
        b"x-accel-buffering: no",
    ]
    text, size = b"", -1
    while size:
        line, _, chunked = chunked.partition(b"\r\n")
        size = int(line, 16)
        text, chunked = text + chunked[:size], chunked[size + 2 :]
    form = rb"(data: {[^\n]+}\n\n){4,}data: \[DONE\]\n\n" if is_sse else rb"({[^\n]+}\n){3,}"
    assert re.fullmatch(form, text)
    assert chunked == b""


class Silent:
    """An engine of which the test says what happens."""

    def __init__(self) -> None:
        self.cancelled: list[int] = []
        self.on_event: Any = None

    def submit(self, request: Request, on_event: Any) -> int:
        self.on_event = on_event
        return 0

    def cancel(self, ticket: int) -> None:
        self.cancelled.append(ticket)


class Plain:
    """A dialect whose chunks are the events' texts."""

    def __init__(self, framing: Framing) -> None:
        self.framing = framing

    def chunks(self, index: int, event: Event) -> list[str]:
        return [event.text] if isinstance(event, Delta) else []

    def last_chunks(self) -> list[str]:
        return ["end"]

    def take(self, index: int, event: Event) -> None: ...

    def whole(self) -> None: ...

    def failed(self, error: Any) -> list[str]:
        return [error.message]


async def hears_nothing() -> Any:
    await asyncio.sleep(60)


def test_a_client_that_does_not_read_is_given_up() -> None:
    async def takes_nothing(message: Any) -> None:
        if message["type"] == "http.response.body":
            await asyncio.sleep(60)

    async def run() -> Silent:
        engine = Silent()
        stream = EventStream(engine, Inbox(asyncio.get_running_loop()))  # type: ignore[arg-type]
        await stream.submit([Request((1,))])
        for event in (Started(1, 0, 0), Delta("a", (97,))):
            engine.on_event(event)
        reply = Reply(stream, Plain(SSE), streaming=True, timeout=0.05, ping_interval=0)
        async with asyncio.timeout(10):
            await reply({"type": "http", "method": "POST"}, hears_nothing, takes_nothing)
        return engine

    assert asyncio.run(run()).cancelled == [0]


@pytest.mark.parametrize("framing", [SSE, NDJSON])
def test_a_stream_that_is_stopped_says_so(framing: Framing) -> None:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def run() -> Silent:
        engine = Silent()
        stream = EventStream(engine, Inbox(asyncio.get_running_loop()))  # type: ignore[arg-type]
        await stream.submit([Request((1,))])
        engine.on_event(Started(1, 0, 0))
        reply = Reply(stream, Plain(framing), streaming=True, timeout=9, ping_interval=0)
        asyncio.get_running_loop().call_later(0.1, stream.stop)
        async with asyncio.timeout(10):
            await reply({"type": "http", "method": "POST"}, hears_nothing, send)
        return engine

    assert asyncio.run(run()).cancelled == [0]
    start, *bodies = sent
    assert start["status"] == 200
    body = b"".join(message["body"] for message in bodies)
    assert body == framing.frame("the server is shutting down")
    assert not bodies[-1]["more_body"]
