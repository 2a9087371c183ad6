"""What clients say of guesses, and what they are told of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gguf_serve.engine.request import (
    Delta,
    DraftLimits,
    Drafts,
    Event,
    Finished,
    Request,
    Started,
    Timings,
)

USER = [{"role": "user", "content": "x"}]


def guessed(request: Request, cancelled: threading.Event) -> Iterator[Event]:
    """Seven tokens were guessed, five were right: of the prediction's four three."""
    yield Started(len(request.prompt), 0, 0)
    yield Delta("ab", (97, 98))
    yield Finished("limit", Timings(0, 1, 1.0, 2, 1.0, Drafts(3, 7, 5, 4, 3)))


def test_a_prediction_is_tokens(serve: Any, fakes: Any) -> None:
    engine = fakes.engine(guessed)
    url = serve(engine) + "/v1/chat/completions"
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    for content in ("ab", parts):
        body = {"messages": USER, "prediction": {"type": "content", "content": content}}
        answer = httpx.post(url, json=body).json()
        assert engine.requests[-1].prediction == (*b"ab",)
    details = answer["usage"]["completion_tokens_details"]
    assert details == {"accepted_prediction_tokens": 3, "rejected_prediction_tokens": 1}
    assert (answer["timings"]["draft_n"], answer["timings"]["draft_n_accepted"]) == (7, 5)
    assert engine.requests[-1].drafts == DraftLimits()


@pytest.mark.parametrize("prediction", ["ab", {"type": "content"}, {"type": "x", "content": "a"}])
def test_a_prediction_of_another_form_is_refused(serve: Any, fakes: Any, prediction: Any) -> None:
    url = serve(fakes.engine()) + "/v1/chat/completions"
    answer = httpx.post(url, json={"messages": USER, "prediction": prediction})
    assert answer.status_code == 400
    assert "prediction" in answer.json()["error"]["message"]


def test_limits(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    url = serve(engine)
    limits = {"speculative.n_max": 3, "speculative.n_min": 2, "speculative.p_min": 0.5}
    answer = httpx.post(url + "/completion", json={"prompt": "x"} | limits).json()
    assert engine.requests[-1].drafts == DraftLimits(3, 2, 0.5)
    assert {name: answer["generation_settings"][name] for name in limits} == limits
    assert "draft_n" not in answer["timings"]
    body = {"model": "m", "messages": USER, "options": {"draft_num_predict": 0}}
    httpx.post(url + "/api/chat", json=body)
    assert engine.requests[-1].drafts.most == 0
