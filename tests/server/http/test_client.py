"""Who asks: the key, where keys count, else the address."""

from __future__ import annotations

from typing import Any

import httpx


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


def test_without_keys_a_header_makes_no_client(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    headers = [{"authorization": f"Bearer {n}"} for n in range(2)]
    assert set(clients(fakes, serve(engine), engine, *headers)) == {"127.0.0.1"}


def test_embeddings_have_a_client_too(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    httpx.post(serve(engine) + "/v1/embeddings", json={"input": ["a"]})
    assert [request.client for request in engine.requests] == ["127.0.0.1"]
