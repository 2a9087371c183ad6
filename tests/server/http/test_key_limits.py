"""Requests at once and tokens a minute of each key."""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gguf_serve.engine.request import Event, Finished, Request, Started, Timings
from gguf_serve.server.errors import ApiError
from gguf_serve.server.http.key_limits import Limit, Limiter, Limits, read_limits

MESSAGES = [{"role": "user", "content": "hi"}]


def test_a_file() -> None:
    limits = read_limits(
        "[default]\nrequests = 2\ntokens_per_minute = 100\n[keys.abc]\ntokens_per_minute = 7\n"
    )
    assert limits.of("abc") == Limit(2, 7)
    assert limits.of("else") == Limit(2, 100)
    assert read_limits("").of("x") == Limit()


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[defaults]\n", "defaults"), ("keys = 3", "keys"), ("[default]\nrequest = 1", "request"),
        ("[keys.a]\nrequests = 0", "keys.a"), ("[keys.a]\nrequests = true", "keys.a"),
        ("[keys]\na = 1", "keys.a"), ("[default", "Expected"),
    ],
)  # fmt: skip
def test_what_is_wrong_with_one(text: str, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        read_limits(text)


def test_tokens_come_back_with_time() -> None:
    now = [0.0]
    limiter = Limiter(Limits(Limit(tokens_per_minute=60)), lambda: now[0])
    limiter.begin("a")
    limiter.spend("a", 90)
    with pytest.raises(ApiError, match="more than 60 tokens") as caught:
        limiter.begin("a")
    assert (caught.value.status, caught.value.headers["retry-after"]) == (429, "31")
    limiter.begin("b")  # which is another
    now[0] = 29.0
    with pytest.raises(ApiError):
        limiter.begin("a")
    now[0] = 31.0
    limiter.begin("a")
    now[0] = 1000.0
    limiter.spend("a", 59)  # no more than a minute's worth is saved up
    limiter.begin("a")
    limiter.spend("a", 1)
    with pytest.raises(ApiError):
        limiter.begin("a")


def test_requests_at_once() -> None:
    limiter = Limiter(Limits(Limit(requests=2)))
    limiter.begin("a")
    limiter.begin("a")
    with pytest.raises(ApiError, match="2 requests run"):
        limiter.begin("a")
    limiter.end("a")
    limiter.begin("a")


def test_clients_are_forgotten_but_for_those_that_are_served() -> None:
    limiter = Limiter(Limits(Limit(requests=1)))
    limiter.begin("busy")
    for n in range(5000):
        limiter.spend(str(n), 1)
    with pytest.raises(ApiError):
        limiter.begin("busy")


@pytest.mark.parametrize(
    ("path", "error"),
    [
        ("/v1/chat/completions", {"error": {"code": 429, "type": "rate_limit_error"}}),
        ("/v1/messages", {"type": "error", "error": {"type": "rate_limit_error"}}),
        ("/api/chat", {}),
    ],
)
def test_refused_in_the_shape_of_the_dialect(
    serve: Any, fakes: Any, path: str, error: dict[str, Any]
) -> None:
    name = hashlib.sha256(b"k").hexdigest()[:16]
    limiter = Limiter(Limits(keys={name: Limit(tokens_per_minute=5)}))
    url = serve(fakes.engine(), api_keys=["k", "free"], limiter=limiter) + path
    body = {"messages": MESSAGES, "max_tokens": 9, "stream": False}
    asked = {"json": body, "headers": {"authorization": "Bearer k"}}
    assert httpx.post(url, **asked).status_code == 200
    refused = httpx.post(url, **asked)
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 60
    found = refused.json()
    for name, value in error.items():
        assert found[name] == value or value.items() <= found[name].items()
    assert "5 tokens" in refused.text
    assert httpx.post(url, json=body, headers={"x-api-key": "free"}).status_code == 200


def test_a_request_counts_until_its_answer_has_ended(serve: Any, fakes: Any) -> None:
    """The next one, on the same connection, may come at once."""
    goes_on = threading.Event()

    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        yield Started(3, 0, 0)
        assert goes_on.wait(20)
        yield Finished("eos", Timings())

    limiter = Limiter(Limits(Limit(requests=1)))
    asked = ("POST", serve(fakes.engine(script), limiter=limiter) + "/v1/chat/completions")
    body = {"messages": MESSAGES, "stream": True}
    with httpx.Client(timeout=20) as client:
        with client.stream(*asked, json=body) as first:
            assert first.status_code == 200
            assert httpx.request(*asked, json=body).status_code == 429
            goes_on.set()
            first.read()
        for _ in range(20):
            assert client.request(*asked, json=body).status_code == 200
