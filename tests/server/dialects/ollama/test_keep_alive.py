"""How long the model stays after a request: Ollama's durations, and what they do."""

from __future__ import annotations

import time
from typing import Any

import httpx
import pytest

from gguf_serve.server.dialects.ollama.keep_alive import FOREVER, seconds
from gguf_serve.server.errors import ApiError


@pytest.mark.parametrize(
    ("asked", "expected"),
    [
        (0, 0), (90, 90), (1.5, 1.5), (-1, FOREVER), ("0", 0), ("5m", 300), ("1h30m", 5400),
        ("250ms", 0.25), ("1.5s", 1.5), ("-1m", FOREVER), ("-0s", 0), (1e300, 1e9),
    ],
)  # fmt: skip
def test_durations(asked: Any, expected: float) -> None:
    assert seconds(asked) == pytest.approx(expected)


@pytest.mark.parametrize("asked", ["", "5", "soon", "5 m", "m", "1h" * 9])
def test_what_is_no_duration(asked: str) -> None:
    with pytest.raises(ApiError, match="'keep_alive'"):
        seconds(asked)


def test_a_model_is_unloaded_and_comes_back(serve: Any, fakes: Any) -> None:
    first, second = fakes.engine(), fakes.engine()
    url = serve(first, sleep=(-1, lambda: second))
    chat = {"model": "m", "messages": [{"role": "user", "content": "hi"}], "stream": False}
    assert httpx.post(url + "/api/chat", json=chat).status_code == 200
    assert len(httpx.get(url + "/api/ps").json()["models"]) == 1
    answer = httpx.post(url + "/api/generate", json={"model": "m", "keep_alive": 0}).json()
    assert answer["done_reason"] == "unload"
    end = time.monotonic() + 20
    while httpx.get(url + "/api/ps").json()["models"] or first.healthy:  # a thread closes it
        assert time.monotonic() < end
    assert httpx.get(url + "/api/tags").json()["models"]  # which wakes nobody
    assert httpx.post(url + "/api/chat", json=chat | {"keep_alive": "1h"}).status_code == 200
    assert len(second.requests) == 1
    (model,) = httpx.get(url + "/api/ps").json()["models"]
    assert model["expires_at"] > "2026"
