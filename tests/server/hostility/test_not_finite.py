"""A model that gives NaN is the server's fault in every dialect, and no answer with nulls."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from gguf_serve.engine.request import Event, Failed, Request, Started

MESSAGE = "the logits of request 3 in slot 0 are NaN or infinite"
CHAT = {"messages": [{"role": "user", "content": "Hi"}], "model": "m", "max_tokens": 5}
TEXTS = {"model": "m", "input": ["Hi", "you"]}
PATHS = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": {"model": "m", "prompt": "Hi", "logprobs": 2, "echo": True},
    "/v1/responses": {"model": "m", "input": "Hi"},
    "/v1/messages": CHAT,
    "/api/chat": CHAT | {"stream": False},
    "/api/generate": {"model": "m", "prompt": "Hi", "stream": False},
    "/completion": {"prompt": "Hi"},
    "/v1/embeddings": TEXTS,
    "/api/embed": TEXTS,
    "/embeddings": {"content": "Hi"},
    "/v1/rerank": {"model": "m", "query": "Hi", "documents": ["you"]},
}


def fails(request: Request, cancelled: threading.Event) -> Iterator[Event]:
    yield Started(len(request.prompt), 0, 0)
    yield Failed(MESSAGE)


@pytest.mark.parametrize("path", PATHS)
def test_it_is_said_in_every_dialect(serve: Any, fakes: Any, path: str) -> None:
    engine = fakes.engine(fails)
    rank = path == "/v1/rerank"
    engine.info = replace(engine.info, pooling="rank" if rank else "mean", ranks=rank)
    response = httpx.post(serve(engine) + path, json=PATHS[path])
    assert response.status_code == 500, response.text
    error = response.json()["error"]
    assert MESSAGE in (error if isinstance(error, str) else error["message"])


def test_health_says_what_is_wrong_with_the_model(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    engine.healthy, engine.fault = False, f"any text gives this: {MESSAGE}"
    response = httpx.get(serve(engine) + "/health")
    assert response.status_code == 503
    assert response.json()["error"]["message"] == engine.fault
