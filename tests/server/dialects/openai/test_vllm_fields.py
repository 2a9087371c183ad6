"""Fields of vLLM's clients that change what an answer has."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from gguf_serve.engine.request import Scoring

TEXT = "Hello wörld"
CHAT = {"messages": [{"role": "user", "content": "hi"}]}


@pytest.fixture
def engine(fakes: Any) -> Any:
    return fakes.engine()


@pytest.fixture
def url(serve: Any, engine: Any) -> str:
    return serve(engine)


def test_ids_of_the_prompt_and_of_the_answer(url: str, engine: Any) -> None:
    asked = {"return_token_ids": True, "max_tokens": 3}
    answer = httpx.post(f"{url}/v1/chat/completions", json=CHAT | asked).json()
    ids = list(engine.requests[0].prompt)
    assert answer["prompt_token_ids"] == ids
    assert answer["choices"][0]["token_ids"] == list(TEXT.encode()[:3])
    answer = httpx.post(f"{url}/v1/completions", json={"prompt": "ab"} | asked).json()
    assert answer["choices"][0]["prompt_token_ids"] == [256, *b"ab"]
    for path, body in (("chat/completions", CHAT), ("completions", {"prompt": "ab"})):
        events = httpx.post(f"{url}/v1/{path}", json=body | asked | {"stream": True}).text
        chunks = [json.loads(line[6:]) for line in events.split("\n\n") if line[6:7] == "{"]
        first = chunks[0] if path[0:4] == "chat" else chunks[0]["choices"][0]
        assert first["prompt_token_ids"] == list(engine.requests[-1].prompt)
        told = [chunk["choices"][0].get("token_ids") or [] for chunk in chunks if chunk["choices"]]
        assert [token for tokens in told for token in tokens] == list(TEXT.encode()[:3])


def test_scores_of_the_prompt(url: str, engine: Any) -> None:
    answer = httpx.post(f"{url}/v1/chat/completions", json=CHAT | {"prompt_logprobs": 1}).json()
    assert engine.requests[-1].wants == Scoring(1)
    scores = answer["prompt_logprobs"]
    assert scores[0] is None
    assert len(scores) == len(engine.requests[-1].prompt)
    second = scores[1][str(engine.requests[-1].prompt[1])]
    assert set(second) == {"logprob", "rank", "decoded_token"}
    body = {"prompt": "abc", "prompt_logprobs": 0}
    answer = httpx.post(f"{url}/v1/completions", json=body).json()
    assert len(answer["choices"][0]["prompt_logprobs"]) == 4
    assert answer["choices"][0]["logprobs"] is None
    refused = httpx.post(f"{url}/v1/completions", json=body | {"stream": True})
    assert refused.status_code == 400
    assert "'prompt_logprobs'" in refused.json()["error"]["message"]


def test_the_end_of_a_prompt_that_is_too_long(url: str, engine: Any) -> None:
    text = "x" * 990 + "y" * 30
    for path, body in (
        ("completions", {"prompt": text}),
        ("chat/completions", {"messages": [{"role": "user", "content": text}]}),
    ):
        assert httpx.post(f"{url}/v1/{path}", json=body).status_code == 400
        kept = body | {"truncate_prompt_tokens": 20, "max_tokens": 1}
        assert httpx.post(f"{url}/v1/{path}", json=kept).status_code == 200
        assert len(engine.requests[-1].prompt) == 20
        kept |= {"truncate_prompt_tokens": -1, "max_tokens": 5}
        assert httpx.post(f"{url}/v1/{path}", json=kept).status_code == 200
        assert len(engine.requests[-1].prompt) == 995
