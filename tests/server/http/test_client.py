"""Who asks: the key, where keys count, else the address."""

from __future__ import annotations

from typing import Any

import httpx
import pytest


def clients(fakes: Any, url: str, engine: Any, *headers: dict[str, str]) -> list[str]:
    for given in headers:
        body = {"prompt": ["a", "b"], "max_tokens": 1}
        assert httpx.post(url + "/v1/completions", json=body, headers=given).status_code == 200
    return [request.client for request in engine.requests]


def test_keys_are_clients(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    url = serve(engine, api_keys=("one", "two"))
    one, two = {"authorization": "Bearer one"}, {"x-api-key": "two"}
    found = clients(fakes, url, engine, one, two, one)
    assert found[0] == found[1] == found[4] != found[2]
    assert "one" not in found[0]  # what is a secret shows nowhere
    batches = [request.batch for request in engine.requests]
    assert batches[0] == batches[1]
    assert len(set(batches)) == 3


@pytest.mark.parametrize("isolates", [False, True])
def test_keys_may_share_no_prefixes(serve: Any, fakes: Any, isolates: bool) -> None:
    engine = fakes.engine()
    url = serve(engine, api_keys=("one", "two"), isolates=isolates)
    for key, salt in (("one", None), ("one", "a"), ("two", None), ("two", "a"), ("one", "a")):
        body = {"prompt": "a", "max_tokens": 1, "cache_salt": salt}
        headers = {"authorization": f"Bearer {key}"}
        assert httpx.post(url + "/v1/completions", json=body, headers=headers).is_success
    salts = [request.cache_salt for request in engine.requests]
    assert salts[4] == salts[1] != salts[0]
    assert len(set(salts)) == (4 if isolates else 2)
    assert not isolates or not any("one" in salt for salt in salts)


@pytest.mark.parametrize("salt", ["", "x" * 257, 1])
def test_salts_that_are_none(serve: Any, fakes: Any, salt: object) -> None:
    response = httpx.post(
        serve(fakes.engine()) + "/v1/completions", json={"prompt": "a", "cache_salt": salt}
    )
    assert response.status_code == 400
    assert "cache_salt" in response.text


CHAT: dict[str, object] = {"messages": [{"role": "user", "content": "a"}], "cache_salt": "s"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/responses", {"input": "a", "cache_salt": "s"}),
        ("/v1/messages", CHAT),
        ("/completion", {"prompt": "a", "cache_salt": "s"}),
        ("/api/chat", CHAT),
        ("/api/chat", {"messages": CHAT["messages"], "options": {"cache_salt": "s"}}),
        ("/api/generate", {"prompt": "a", "cache_salt": "s"}),
        ("/api/generate", {"prompt": "a", "raw": True, "options": {"cache_salt": "s"}}),
    ],
)
def test_every_dialect_has_salts(
    serve: Any, fakes: Any, path: str, body: dict[str, object]
) -> None:
    engine = fakes.engine()
    assert httpx.post(serve(engine) + path, json=body).is_success
    assert [request.cache_salt for request in engine.requests] == ["s"]
    assert httpx.post(serve(engine) + path, json=body | {"cache_salt": ""}).status_code == 400


def test_without_keys_a_header_makes_no_client(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    headers = [{"authorization": f"Bearer {n}"} for n in range(2)]
    assert set(clients(fakes, serve(engine), engine, *headers)) == {"127.0.0.1"}


def test_embeddings_have_a_client_too(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    httpx.post(serve(engine) + "/v1/embeddings", json={"input": ["a"]})
    assert [request.client for request in engine.requests] == ["127.0.0.1"]


def test_a_session_is_the_header_or_a_field(serve: Any, fakes: Any) -> None:
    """It says which of several engines knows a conversation; nothing else of an answer."""
    engine = fakes.engine()
    url = serve(engine) + "/v1/completions"
    for fields, header in (
        ({"user": "a"}, ""),
        ({"user": "a", "prompt_cache_key": "b"}, ""),
        ({"user": "a", "prompt_cache_key": "b"}, "c"),
        ({}, ""),
    ):
        headers = {"x-session-id": header} if header else {}
        body = {"prompt": "a", "max_tokens": 1, **fields}
        assert httpx.post(url, json=body, headers=headers).is_success
    assert [request.session for request in engine.requests] == ["a", "b", "c", ""]
