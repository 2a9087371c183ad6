"""Streams that are taken up again after their connection broke."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gguf_serve.engine.request import Delta, Event, Request
from gguf_serve.server.kept import streams

BODY = {"messages": [{"role": "user", "content": "hi"}], "stream": True}
CHAT = "/v1/chat/completions"
NAMED = {"X-Conversation-Id": "c/1"}


class Held:
    """A script that stops behind the first letter until it may go on, or is cancelled."""

    def __init__(self, fakes: Any) -> None:
        self._say = fakes.say("abcdefgh")
        self.goes_on = threading.Event()

    def __call__(self, request: Request, cancelled: threading.Event) -> Iterator[Event]:
        for event in self._say(request, cancelled):
            yield event
            while isinstance(event, Delta) and not cancelled.is_set():
                if self.goes_on.wait(0.02):
                    break


@pytest.fixture
def script(fakes: Any) -> Held:
    return Held(fakes)


@pytest.fixture
def http(serve: Any, fakes: Any, script: Held) -> Iterator[httpx.Client]:
    engine = fakes.engine(script)
    with httpx.Client(base_url=serve(engine)) as client:
        client.engine = engine  # type: ignore[attr-defined]
        yield client


def broken_off(http: httpx.Client, path: str = CHAT, body: Any = BODY, **headers: str) -> bytes:
    """What has come before the connection breaks."""
    with http.stream("POST", path, json=body, headers=NAMED | headers) as answer:
        assert answer.status_code == 200
        return next(answer.iter_raw())


def rest(http: httpx.Client, start: int, name: str = "c/1") -> httpx.Response:
    return http.get("/v1/stream", params={"conv_id": name, "from": start})


def looked_up(http: httpx.Client, *names: str) -> Any:
    return http.post("/v1/streams/lookup", json={"conversation_ids": names}).json()


@pytest.mark.parametrize(
    ("path", "body", "last"),
    [
        (CHAT, BODY, b"data: [DONE]\n\n"),
        ("/completion", {"prompt": "hi", "stream": True}, b"}\n\n"),
        ("/v1/messages", BODY | {"max_tokens": 9}, b'data: {"type":"message_stop"}\n\n'),
        ("/v1/responses", {"input": "hi", "stream": True}, b"}\n\n"),
        ("/api/chat", BODY, b"}\n"),
    ],
)
def test_the_rest_of_a_stream(http: Any, script: Held, path: str, body: Any, last: bytes) -> None:
    """Every byte once, from whichever on, as often as it is asked for, while it is written and
    later; nothing is computed again."""
    begun = broken_off(http, path, body)
    (state,) = looked_up(http, "c/1")
    assert state["is_done"] is False
    assert state["completed_at"] == 0
    with http.stream("GET", "/v1/stream", params={"conv_id": "c/1", "from": len(begun)}) as answer:
        script.goes_on.set()
        answer.read()
    whole = begun + answer.content
    assert whole.endswith(last)
    assert b"".join(re.findall(rb':"([a-h])"', whole)) == b"abcdefgh"
    kind = "application/x-ndjson" if path == "/api/chat" else "text/event-stream"
    assert answer.headers["content-type"].startswith(kind)
    for start in (0, 1, len(begun) + 7, len(whole) - 1, len(whole), len(whole) + 5):
        assert rest(http, start).content == whole[start:]
    (state,) = looked_up(http, "c/1")
    assert state["is_done"] is True
    assert state["total_bytes"] == len(whole)
    assert state["completed_at"] >= state["started_at"] > 0
    assert len(http.engine.requests) == 1
    assert http.engine.cancelled == []


def test_a_stream_without_a_name_ends_with_its_connection(http: Any) -> None:
    with http.stream("POST", CHAT, json=BODY) as answer:
        next(answer.iter_raw())
    until(lambda: http.engine.cancelled)
    assert rest(http, 0).status_code == 404


def until(condition: Any) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < 20
        time.sleep(0.01)


def test_stop(http: Any) -> None:
    """As often as one likes; what is not there can be stopped."""
    broken_off(http)
    for _ in range(2):
        assert http.delete("/v1/stream", params={"conv_id": "c/1"}).status_code == 204
    until(lambda: http.engine.cancelled)
    assert rest(http, 0).status_code == 404
    assert looked_up(http, "c/1") == []


def test_the_next_request_of_a_conversation_ends_the_last(http: Any, script: Held) -> None:
    broken_off(http)
    broken_off(http)
    until(lambda: http.engine.cancelled)
    script.goes_on.set()
    assert [number for number, _ in http.engine.cancelled] == [0]
    assert b"[DONE]" in rest(http, 0).content


def test_lookup_lists_what_is_named_alone(http: Any) -> None:
    for name in ("one", "two", "one::a/b", "onerous"):
        broken_off(http, **{"X-Conversation-Id": name})
    found = {state["conversation_id"] for state in looked_up(http, "one", "none")}
    assert found == {"one", "one::a/b"}
    assert looked_up(http) == []


def test_keys_have_streams_of_their_own(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(), api_keys=["first", "second"])
    mine, other = (
        httpx.Client(base_url=url, headers={"Authorization": f"Bearer {key}"})
        for key in ("first", "second")
    )
    with mine, other:
        broken_off(mine)
        assert rest(other, 0).status_code == 404
        assert looked_up(other, "c/1") == []
        other.delete("/v1/stream", params={"conv_id": "c/1"})
        assert b"[DONE]" in rest(mine, 0).content


def test_a_failure_before_the_first_byte_is_an_error_and_leaves_nothing(
    serve: Any, fakes: Any
) -> None:
    def fails(request: Any, cancelled: Any) -> Iterator[Any]:
        yield fakes.failed("this cannot be", by_request=True)

    with httpx.Client(base_url=serve(fakes.engine(fails))) as http:
        answer = http.post(CHAT, json=BODY, headers=NAMED)
        assert answer.status_code == 400
        assert answer.json()["error"]["message"] == "this cannot be"
        assert rest(http, 0).status_code == 404


def test_what_is_too_long_loses_its_beginning(
    http: Any, script: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streams, "KEPT_BYTES", 600)
    begun = broken_off(http)
    script.goes_on.set()
    rest(http, len(begun))
    (state,) = looked_up(http, "c/1")
    lost = rest(http, 0)
    assert lost.status_code == 400
    assert lost.json()["error"]["message"] == "Stream offset lost, please restart"
    end = rest(http, state["total_bytes"] - 300)
    assert len(end.content) == 300
    assert end.content.endswith(b"[DONE]\n\n")


def test_the_oldest_that_have_ended_make_room(
    serve: Any, fakes: Any, script: Held, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where all still run, one more is a stream as others are."""
    monkeypatch.setattr(streams, "KEPT_BYTES", 10_000)
    with httpx.Client(base_url=serve(fakes.engine(script), response_memory=20_000)) as http:
        for name in ("1", "2", "3"):
            broken_off(http, **{"X-Conversation-Id": name})
        assert [state["conversation_id"] for state in looked_up(http, "1", "2", "3")] == ["1", "2"]
        script.goes_on.set()
        rest(http, 0, "1")
        rest(http, 0, "2")
        script.goes_on.clear()
        for name in ("4", "5"):
            broken_off(http, **{"X-Conversation-Id": name})
        found = [state["conversation_id"] for state in looked_up(http, *"12345")]
        assert found[-1] in ("4", "5")
        assert "1" not in found


@pytest.mark.parametrize(
    ("query", "message"),
    [("", "'conv_id'"), ("conv_id=", "'conv_id'"), ("conv_id=a&from=x", "'from'")],
)
def test_what_is_refused(http: Any, query: str, message: str) -> None:
    answer = http.get(f"/v1/stream?{query}")
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]
