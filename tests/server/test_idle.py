"""The model leaves memory when nobody asks, and comes back for the next request."""

from __future__ import annotations

import time
from typing import Any

import httpx

BODY = {"messages": [{"role": "user", "content": "hi"}]}


def until(condition: Any) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < 5
        time.sleep(0.01)


def test_sleep_and_waking_up(serve: Any, fakes: Any) -> None:
    first, second = fakes.engine(), fakes.engine()
    loaded = []

    def load() -> Any:
        time.sleep(0.1)
        loaded.append(second)
        return second

    url = serve(first, sleep=(0.3, load))
    chat = url + "/v1/chat/completions"
    assert httpx.post(chat, json=BODY).status_code == 200
    until(lambda: httpx.get(url + "/props").json()["is_sleeping"])
    assert not first.healthy
    assert httpx.get(url + "/health").status_code == 200
    assert httpx.get(url + "/v1/models").json()["data"]
    assert loaded == []  # none of these has woken it
    assert httpx.post(chat, json=BODY).status_code == 200
    assert loaded == [second]
    assert len(second.requests) == 1
    assert not httpx.get(url + "/props").json()["is_sleeping"]
    until(lambda: httpx.get(url + "/props").json()["is_sleeping"])


def test_a_response_in_the_background_keeps_it_awake(serve: Any, fakes: Any) -> None:
    engine = fakes.engine(fakes.say("abcdef", pause=0.1))
    url = serve(engine, sleep=(0.05, lambda: engine)) + "/v1/responses"
    answer = httpx.post(url, json={"input": "hi", "background": True}).json()
    until(lambda: httpx.get(f"{url}/{answer['id']}").json()["status"] == "completed")
    assert engine.cancelled == []


def test_a_running_request_keeps_it_awake(serve: Any, fakes: Any) -> None:
    engine = fakes.engine(fakes.say("abcdef", pause=0.1))
    url = serve(engine, sleep=(0.2, lambda: engine))
    answer = httpx.post(url + "/v1/chat/completions", json=BODY).json()
    assert answer["choices"][0]["message"]["content"] == "abcdef"
