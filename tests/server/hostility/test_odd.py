"""What no client should send, to every endpoint: refused in its shape, never a fault or a hang."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import httpx
import pytest

CHAT = {"messages": [{"role": "user", "content": "hi"}]}
LENGTHS = {
    "/v1/chat/completions": (CHAT, "max_tokens"),
    "/v1/messages": (CHAT, "max_tokens"),
    "/v1/responses": ({"input": "hi"}, "max_output_tokens"),
    "/v1/completions": ({"prompt": "hi"}, "max_tokens"),
    "/completion": ({"prompt": "hi"}, "n_predict"),
}
PATHS = (
    *LENGTHS, "/api/chat", "/api/generate", "/api/embed", "/tokenize", "/detokenize", "/infill",
    "/v1/embeddings", "/apply-template", "/v1/messages/count_tokens",
)  # fmt: skip
BODIES = {
    "nothing": b"",
    "an array": b"[]",
    "not UTF-8": b'{"prompt":"\xff","input":"\xff","content":"\xff","messages":[{"role":"\xff"}]}',
    "a lone surrogate": b'{"prompt":"\\ud800","input":"\\ud800","messages":[{"role":"\\ud800"}]}',
    "deep": b'{"messages":' + b"[" * 200_000 + b"]" * 200_000 + b"}",
    "not finite": b'{"messages":[{"role":"user","content":"x"}],"prompt":"x","temperature":NaN}',
    "compressed": b"\x1f\x8b\x08\x00",
}


@pytest.fixture
def url(serve: Any, fakes: Any) -> str:
    return serve(fakes.engine())


def message(response: httpx.Response, path: str) -> str:
    error = response.json()["error"]
    assert isinstance(error, str) == path.startswith("/api/")
    assert ("type" in response.json()) == path.startswith("/v1/messages")
    return error if isinstance(error, str) else error["message"]


@pytest.mark.parametrize("name", BODIES)
def test_bodies_that_are_no_request(url: str, name: str) -> None:
    for path in PATHS:
        response = httpx.post(url + path, content=BODIES[name], timeout=20)
        assert response.status_code == 400, (path, response.text)
        assert "JSON" in message(response, path)


@pytest.mark.parametrize("path", PATHS)
def test_fields_that_are_nested(url: str, path: str) -> None:
    """As deep as the body may be: whoever looks into it must not run out of stack."""
    deep = b"[" * 900 + b"]" * 900
    body = b'{"messages":[{"role":"user","content":"x","extra":%b}],"prompt":%b,"input":%b,' % (
        (deep,) * 3
    )
    response = httpx.post(url + path, content=body + b'"content":%b}' % deep, timeout=20)
    assert response.status_code in (200, 400), response.text


@pytest.mark.parametrize("path", LENGTHS)
@pytest.mark.parametrize("value", [-5, 2**31, 10**30, 1.5])
@pytest.mark.parametrize("stream", [False, True])
def test_lengths_are_named(url: str, path: str, value: Any, stream: bool) -> None:
    body, name = LENGTHS[path]
    response = httpx.post(url + path, json=body | {name: value, "stream": stream})
    assert response.status_code == 400
    assert message(response, path).startswith(f"Field '{name}': ")


@pytest.mark.parametrize("path", LENGTHS)
@pytest.mark.parametrize("stream", [False, True])
def test_a_wrong_key(serve: Any, fakes: Any, path: str, stream: bool) -> None:
    url, headers = serve(fakes.engine(), api_keys=["k"]), {"authorization": "Bearer no"}
    response = httpx.post(
        url + path, json=LENGTHS[path][0] | {"stream": stream}, headers=headers, timeout=20
    )
    assert response.status_code == 401
    assert message(response, path) == "Invalid API Key"


@pytest.mark.parametrize("path", LENGTHS)
@pytest.mark.parametrize("stream", [False, True])
def test_an_unknown_model_is_the_one_there_is(url: str, path: str, stream: bool) -> None:
    body = LENGTHS[path][0] | {"model": "no such model", "max_tokens": 1, "stream": stream}
    text = httpx.post(url + path, json=body, timeout=20).text
    assert json.dumps("tiny.Q8_0.gguf") in text
    assert "no such model" not in text


PROMPTS = {
    "/v1/completions": "prompt",
    "/completion": "prompt",
    "/v1/embeddings": "input",
    "/embeddings": "content",
    "/api/embed": "input",
    "/rerank": "documents",
    "/v1/rerank": "texts",
}


@pytest.mark.parametrize("path", PROMPTS)
def test_prompts_without_number(serve: Any, fakes: Any, path: str) -> None:
    """Each would be a request to the engine, before those of all others."""
    engine = fakes.engine()
    engine.info = replace(engine.info, ranks=True)
    url, name = serve(engine), PROMPTS[path]
    response = httpx.post(url + path, json={"query": "q", name: ["a"] * 100_000}, timeout=20)
    assert response.status_code == 400
    assert message(response, path) == f"Field '{name}': at most 2048 at a time, got 100000"
    assert not engine.requests


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/messages", "/completion"])
def test_stop_strings_without_number(url: str, path: str) -> None:
    name = "stop_sequences" if path == "/v1/messages" else "stop"
    body = LENGTHS[path][0] | {name: ["a"] * 257, "max_tokens": 1}
    response = httpx.post(url + path, json=body, timeout=20)
    assert response.status_code == 400
    assert message(response, path) == f"Field '{name}': at most 256 strings, got 257"


@pytest.mark.parametrize(
    "body",
    [
        CHAT | {"response_format": {"type": "x" * 100_000}},
        CHAT | {"logit_bias": [["x" * 100_000]]},
        CHAT | {"samplers": ["x" * 100_000]},
    ],
)
def test_a_long_value_is_not_repeated(url: str, body: dict[str, Any]) -> None:
    path = "/v1/chat/completions"
    told = message(httpx.post(url + path, json=body, timeout=20), path)
    assert told.startswith("Field '")
    assert len(told) < 1100
