"""What holds for every path: the loading gate, keys, CORS, limits, the shape of errors."""

from __future__ import annotations

from typing import Any

import httpx
import openai
import pytest

CHAT = "/v1/chat/completions"
BODY = {"messages": [{"role": "user", "content": "hi"}]}


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
