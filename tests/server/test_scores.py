"""Log-probabilities: how many an answer may have."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gguf_serve.server.http import reply
from gguf_serve.server.requests import generate


def test_scores_of_prompts_are_counted_before(
    serve: Any, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(generate, "MAX_SCORES", 60)
    engine = fakes.engine()
    url = serve(engine) + "/v1/completions"
    body = {"prompt": ["a" * 9, "b" * 9], "echo": True, "max_tokens": 1}
    assert httpx.post(url, json=body | {"logprobs": 2}).status_code == 200
    n = len(engine.requests)
    answer = httpx.post(url, json=body | {"logprobs": 3, "stream": True})
    assert answer.status_code == 400
    assert "80 log-probabilities of the prompts" in answer.json()["error"]["message"]
    assert len(engine.requests) == n


def test_scores_of_a_whole_answer_are_counted_as_they_come(
    serve: Any, fakes: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply, "MAX_SCORES", 20)
    engine = fakes.engine(fakes.say("x" * 6))
    url = serve(engine) + "/completion"
    assert httpx.post(url, json={"prompt": "a", "n_probs": 2}).status_code == 200
    answer = httpx.post(url, json={"prompt": "a", "n_probs": 3})
    assert answer.status_code == 400
    assert "more than 20 log-probabilities" in answer.json()["error"]["message"]
    streamed = httpx.post(url, json={"prompt": "a", "n_probs": 3, "stream": True})
    assert streamed.text.count("top_logprobs") == 6


def test_scores_of_a_long_prompt_are_streamed(serve: Any, fakes: Any) -> None:
    body = {"prompt": "a" * 400, "echo": True, "logprobs": 1, "max_tokens": 2, "stream": True}
    answer = httpx.post(serve(fakes.engine()) + "/v1/completions", json=body)
    assert answer.text.count('"top_logprobs"') > 400
    assert answer.text.endswith("data: [DONE]\n\n")
