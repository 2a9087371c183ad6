"""What holds for every path: the loading gate, keys, CORS, limits, the shape of errors."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import socket
import threading
import time
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import pytest

from gguf_serve.engine.request import Delta, Event, Finished, Request, Started, Timings
from gguf_serve.server.app import Cors

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}
RAW = json.dumps(BODY).encode()


def error(response: httpx.Response) -> tuple[int, str, str]:
    assert response.headers["content-type"].startswith("application/json")
    body = response.json()["error"]
    assert body["code"] == response.status_code
    return body["code"], body["type"], body["message"]


def test_health(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    url = serve(engine)
    for path in ("/health", "/v1/health"):
        response = httpx.get(url + path)
        assert (response.status_code, response.json()) == (200, {"status": "ok"})
    engine.healthy = False
    assert httpx.get(url + "/health").status_code == 503
    response = httpx.post(url + CHAT, json=BODY)
    assert error(response) == (503, "unavailable_error", "the engine has stopped")


@pytest.mark.parametrize("path", ["/health", "/v1/health", "/v1/models", "/nowhere"])
def test_loading_wins_over_the_key(serve: Any, path: str) -> None:
    url = serve(None, api_keys=["k"])
    expected = (503, "unavailable_error", "Loading model")
    assert error(httpx.get(url + path)) == expected
    assert error(httpx.post(url + CHAT, json=BODY)) == expected


def test_keys(serve: Any, fakes: Any, client: Any) -> None:
    url = serve(fakes.engine(), api_keys=["one", "two"])
    for headers in ({"Authorization": "Bearer two"}, {"X-Api-Key": "one"}):
        assert httpx.get(url + "/v1/models", headers=headers).status_code == 200
    for headers in ({}, {"Authorization": "Bearer on"}, {"X-Api-Key": "ä"}, {"X-Api-Key": ""}):
        raw = {name: value.encode() for name, value in headers.items()}
        response = httpx.get(url + "/v1/models", headers=raw)
        assert error(response) == (401, "authentication_error", "Invalid API Key")
    assert httpx.get(url + "/health").status_code == 200
    assert httpx.get(url + "/").status_code == 200
    assert client(url, "one").models.list().data
    with pytest.raises(openai.AuthenticationError):
        client(url, "three").models.list()


@pytest.mark.parametrize("key", ["Schlüssel", "clé-à", "ключ", "鍵"])
def test_keys_that_are_not_ascii(serve: Any, fakes: Any, key: str) -> None:
    """``à`` ends with a byte that is white space in Latin-1."""
    url = serve(fakes.engine(), api_keys=[key])
    given = [key.encode()]
    if key.isprintable() and max(map(ord, key)) < 256:
        given.append(key.encode("latin-1"))
    for raw in given:
        for headers in ({b"authorization": b"Bearer " + raw}, {b"x-api-key": raw}):
            assert httpx.get(url + "/v1/models", headers=headers).status_code == 200
    wrong = {b"x-api-key": key[:-1].encode()}
    assert httpx.get(url + "/v1/models", headers=wrong).status_code == 401


def test_cors(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(), api_keys=["k"])
    origin = {"Origin": "http://page.example"}
    response = httpx.get(url + "/health", headers=origin)
    assert response.headers["access-control-allow-origin"] == "*"
    asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "x-api-key"}
    response = httpx.options(url + CHAT, headers=origin | asked)
    assert response.status_code == 200
    assert "POST" in response.headers["access-control-allow-methods"]
    assert "x-api-key" in response.headers["access-control-allow-headers"]


def test_pages_of_the_internet_may_use_a_server_at_home(serve: Any, fakes: Any) -> None:
    asked = {"Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Private-Network"] = "true"
    cors = Cors(origins=["http://page.example"])
    for url in (serve(fakes.engine()), serve(fakes.engine(), cors=cors)):
        response = httpx.options(url + CHAT, headers=asked | {"Origin": "http://page.example"})
        assert response.status_code == 200
        assert response.headers["access-control-allow-private-network"] == "true"
    assert httpx.options(url + CHAT, headers=asked | {"Origin": "http://b"}).status_code == 400


def test_cors_of_pages_on_this_host(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(), cors=Cors(origins=["localhost"]))

    def allowed(origin: str) -> str | None:
        return httpx.get(f"{url}/health", headers={"origin": origin}).headers.get(
            "access-control-allow-origin"
        )

    for origin in ("http://localhost:3000", "https://127.0.0.1", "http://[::1]:80"):
        assert allowed(origin) == origin
    for origin in ("http://localhost.evil.example", "http://evil.example/localhost", "null"):
        assert allowed(origin) is None


def test_cors_can_be_narrowed(serve: Any, fakes: Any) -> None:
    cors = Cors(origins=["http://page.example"], methods=["GET"], credentials=True)
    url = serve(fakes.engine(), cors=cors)
    for origin, allowed in (("http://page.example", "http://page.example"), ("http://b", None)):
        response = httpx.get(url + "/health", headers={"Origin": origin})
        assert response.headers.get("access-control-allow-origin") == allowed
    asked = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
    assert httpx.options(url + CHAT, headers=asked).status_code == 400


def test_a_prefix_of_all_paths(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(), prefix="/llm", api_keys=["k"])
    assert httpx.get(url + "/llm/health").json() == {"status": "ok"}
    assert httpx.get(url + "/llm/").status_code == 200
    assert httpx.post(url + "/llm" + CHAT, json=BODY, headers={"X-Api-Key": "k"}).is_success
    assert httpx.post(url + "/llm" + CHAT, json=BODY).status_code == 401
    for path in ("/health", "/llmore/health"):
        assert error(httpx.get(url + path)) == (404, "not_found_error", "File Not Found")


def test_slashes(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(), api_keys=["k"])
    key = {"X-Api-Key": "k"}
    for path in ("//v1/models", "/v1/models/", "/v1//models", "//v1/models//"):
        assert httpx.get(url + path, headers=key).json()["object"] == "list"
        assert httpx.get(url + path).status_code == 401
    for path in (CHAT + "/", "/" + CHAT):
        assert httpx.post(url + path, json=BODY, headers=key).status_code == 200
    assert httpx.post(url + "/v1/messages/", json={}).json()["type"] == "error"
    for path in ("//health", "/health/", "//"):
        assert httpx.get(url + path).status_code == 200
    prefixed = serve(fakes.engine(), prefix="/llm")
    assert httpx.get(prefixed + "//llm//health/").json() == {"status": "ok"}


def test_a_body_that_does_not_arrive(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(), timeout=0.2)
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(
            f"POST {CHAT} HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{{".encode()
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 408")


def test_two_hundred_requests_on_four_slots(serve: Any, fakes: Any) -> None:
    """Each is answered, refused or cancelled; none hangs, and none is mixed up with another."""
    engine = fakes.engine(queued(4))
    url = serve(engine)

    async def one(client: httpx.AsyncClient, number: int) -> str:
        body = {"prompt": f"{number:03}", "stream": number % 2 == 0}
        if number % 10 == 0:
            hasty = httpx.Timeout(60, read=0.05)
            with contextlib.suppress(httpx.ReadTimeout):
                await client.post(url + "/v1/completions", json=body, timeout=hasty)
            return "left"
        if number % 7 == 0:
            answer = await client.post(url + "/v1/completions", json=body | {"prompt": []})
            return f"refused {answer.status_code}"
        text = (await client.post(url + "/v1/completions", json=body)).text
        return "answered" if text.count(f'"text":"{number:03}"') == 1 else text

    async def all_of_them() -> list[str]:
        async with httpx.AsyncClient(
            timeout=60, limits=httpx.Limits(max_connections=300)
        ) as client:
            return await asyncio.gather(*(one(client, number) for number in range(200)))

    counts = Counter(asyncio.run(all_of_them()))
    assert counts == {"left": 20, "refused 400": 26, "answered": 154}
    begin = time.monotonic()
    while engine.n_running:
        assert time.monotonic() - begin < 20
        time.sleep(0.01)


def queued(n_slots: int) -> Any:
    """A script that repeats its prompt, and of which so many play at a time."""
    slots = threading.BoundedSemaphore(n_slots)

    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        with slots:
            if not cancelled.is_set():
                yield Started(len(request.prompt), 0, 0)
                yield Delta(bytes(request.prompt[1:]).decode(), (1,))
                cancelled.wait(0.01)
            reason: Any = "cancelled" if cancelled.is_set() else "eos"
            yield Finished(reason, Timings(predicted_n=1))

    return script


def test_options_always_answers(serve: Any) -> None:
    assert httpx.options(serve(None, api_keys=["k"]) + CHAT).status_code == 204


def test_unknown_paths_and_methods(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine())
    assert error(httpx.get(url + "/nowhere")) == (404, "not_found_error", "File Not Found")
    response = httpx.get(url + CHAT)
    assert error(response)[:2] == (405, "method_not_allowed_error")
    assert response.headers["allow"] == "POST"


def test_long_bodies(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(), max_body=1000)
    assert httpx.post(url + CHAT, json=BODY).status_code == 200
    response = httpx.post(url + CHAT, content=b"x" * 1001)
    assert error(response)[:2] == (413, "payload_too_large_error")
    chunked = iter([b"x" * 600, b"x" * 600])
    assert httpx.post(url + CHAT, content=chunked).status_code == 413


def test_a_byte_order_mark(serve: Any, fakes: Any) -> None:
    response = httpx.post(serve(fakes.engine()) + CHAT, content=b"\xef\xbb\xbf" + RAW)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("encoding", "content"),
    [
        ("gzip", gzip.compress(RAW, mtime=0)),
        ("GZIP", gzip.compress(RAW, mtime=0)),
        ("deflate", zlib.compress(RAW)),
        ("identity", RAW),
        ("", RAW),
    ],
)
def test_compressed_bodies(serve: Any, fakes: Any, encoding: str, content: bytes) -> None:
    headers = {"content-encoding": encoding}
    response = httpx.post(serve(fakes.engine()) + CHAT, content=content, headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("encoding", "content", "expected"),
    [
        ("br", RAW, (415, "unsupported_media_type_error")),
        ("gzip, gzip", RAW, (415, "unsupported_media_type_error")),
        ("gzip", RAW, (400, "invalid_request_error")),
        ("gzip", b"", (400, "invalid_request_error")),
        ("gzip", gzip.compress(RAW, mtime=0)[:-1], (400, "invalid_request_error")),
        ("gzip", gzip.compress(RAW, mtime=0) * 2, (400, "invalid_request_error")),
        ("gzip", gzip.compress(bytes(10**6), mtime=0), (413, "payload_too_large_error")),
    ],
)
def test_bodies_that_cannot_be_decompressed(
    serve: Any, fakes: Any, encoding: str, content: bytes, expected: tuple[int, str]
) -> None:
    url = serve(fakes.engine(), max_body=10_000)
    response = httpx.post(url + CHAT, content=content, headers={"content-encoding": encoding})
    assert error(response)[:2] == expected
    assert expected[0] == 413 or encoding in error(response)[2]


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[1]", b'{"a": "\xff"}', b'{"a": "\\ud800"}', b"[" * 100_000, b"NaN"]
)
def test_malformed_bodies(serve: Any, fakes: Any, content: bytes) -> None:
    response = httpx.post(serve(fakes.engine()) + CHAT, content=content)
    assert error(response)[:2] == (400, "invalid_request_error")


def test_a_fault_of_the_server_is_told(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    engine.chat_template.render = lambda *_, **__: 1 / 0
    response = httpx.post(serve(engine) + CHAT, json=BODY)
    assert error(response)[:2] == (500, "server_error")
    assert "ZeroDivisionError" in error(response)[2]
