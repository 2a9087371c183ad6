"""What an editor has asked for before gives way to what it asks for now."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from gguf_serve.engine.request import Event, Request

REQUESTS: dict[str, dict[str, Any]] = {
    "/infill": {"input_prefix": "a", "input_suffix": "b"},
    "/v1/completions": {"prompt": "a", "suffix": "b"},
    "/api/generate": {"prompt": "a", "suffix": "b", "stream": False},
}


def engine_for(fakes: Any) -> Any:
    """It ends no answer before there is a second request, or the first is cancelled."""
    say = fakes.say("x" * 20)

    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        end = time.monotonic() + 20
        while len(engine.requests) < 2 and not cancelled.wait(0.01):
            assert time.monotonic() < end
        yield from say(request, cancelled)

    engine = fakes.engine(script)
    engine.tokenizer.fim = fakes.fim(prefix=1, suffix=2, middle=3)
    return engine


def twice(url: str, path: str, engine: Any, *, headers: Any = None, **body: Any) -> list[int]:
    """The statuses of a request and of one that comes while it is answered."""

    def ask() -> int:
        return httpx.post(url + path, json=REQUESTS[path] | body, headers=headers).status_code

    with ThreadPoolExecutor() as pool:
        first = pool.submit(ask)
        while not engine.requests:
            time.sleep(0.005)
        return [first.result(), second] if (second := ask()) else []


@pytest.mark.parametrize("path", REQUESTS)
def test_the_newest_of_a_session(serve: Any, fakes: Any, path: str) -> None:
    engine = engine_for(fakes)
    url = serve(engine)
    assert twice(url, path, engine, headers={"X-Session-Id": "window 1"}) == [400, 200]
    assert [number for number, _ in engine.cancelled] == [0]


def test_users_are_told_apart_and_others_are_not(serve: Any, fakes: Any) -> None:
    engine = engine_for(fakes)
    url = serve(engine)
    assert twice(url, "/infill", engine, user="me") == [400, 200]
    engine.requests.clear()
    assert twice(url, "/infill", engine) == [200, 200]  # who cannot be told apart
    engine.requests.clear()
    with ThreadPoolExecutor() as pool:
        asked = [
            pool.submit(httpx.post, url + "/infill", json=REQUESTS["/infill"] | {"user": name})
            for name in ("me", "you")
        ]
        assert [one.result().status_code for one in asked] == [200, 200]


def test_a_completion_without_a_suffix_stays(serve: Any, fakes: Any) -> None:
    engine = engine_for(fakes)
    url = serve(engine)
    assert twice(url, "/v1/completions", engine, user="me", suffix=None) == [200, 200]
