"""Conversations that are longer than the context: which turns go."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

N_CTX = 1000
QUESTION = "q" * 50
ANSWER = "a" * 50
TURN = 200  # tokens, or a little less


def conversation(n_turns: int) -> list[dict[str, str]]:
    """As many turns, and a question."""
    turns = [
        message
        for number in range(n_turns)
        for message in (
            {"role": "user", "content": f"{number:04} {QUESTION}"},
            {"role": "assistant", "content": ANSWER},
        )
    ]
    return [*turns, {"role": "user", "content": "the last"}]


@pytest.fixture
def engine(fakes: Any) -> Any:
    return fakes.engine(n_ctx=N_CTX)


def prompt_of(engine: Any) -> str:
    return str(engine.tokenizer.decode(engine.requests[-1].prompt, special=True))


def ask(serve: Any, engine: Any, **body: Any) -> httpx.Response:
    body = {"instructions": "Be brief", "truncation": "auto"} | body
    return httpx.post(f"{serve(engine)}/v1/responses", json=body)


@pytest.mark.parametrize("n_turns", [0, 1, 6, 7, 8, 9, 30])
def test_as_few_turns_go_as_must(serve: Any, engine: Any, n_turns: int) -> None:
    answer = ask(serve, engine, input=conversation(n_turns))
    assert answer.status_code == 200
    assert answer.json()["truncation"] == "auto"
    text, n_tokens = prompt_of(engine), len(engine.requests[-1].prompt)
    assert "system: Be brief" in text
    assert "the last" in text
    kept = [number for number in range(n_turns) if f"{number:04} {QUESTION}" in text]
    assert kept == list(range(n_turns - len(kept), n_turns))  # the newest
    assert n_tokens <= N_CTX * 7 / 8
    if len(kept) < n_turns:
        assert n_tokens + TURN > N_CTX * 7 / 8  # another would not have had room


def test_a_short_answer_leaves_room_for_more(serve: Any, engine: Any) -> None:
    ask(serve, engine, input=conversation(30), max_output_tokens=10)
    assert N_CTX - 10 - TURN < len(engine.requests[-1].prompt) <= N_CTX - 10


def test_a_call_goes_with_its_result(serve: Any, engine: Any) -> None:
    call = {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"}
    result = {"type": "function_call_output", "call_id": "1", "output": "x" * 900}
    start = {"role": "user", "content": "first"}
    assert ask(serve, engine, input=[start, call, result, *conversation(0)]).status_code == 200
    messages = engine.chat_template.calls[-1]["messages"]
    assert [message["role"] for message in messages][:2] == ["system", "user"]
    assert "first" not in prompt_of(engine)


def test_what_does_not_fit_alone_is_refused(serve: Any, engine: Any) -> None:
    assert ask(serve, engine, input=[*conversation(3), *conversation(0)]).status_code == 200
    refused = ask(serve, engine, input="x" * 1100)
    assert refused.status_code == 400
    assert "context" in refused.json()["error"]["message"]


def test_others_are_refused(serve: Any, engine: Any) -> None:
    for body in ({"truncation": "disabled"}, {"truncation": None}):
        refused = ask(serve, engine, input=conversation(30), **body)
        assert refused.status_code == 400
    assert (
        "truncation" in ask(serve, engine, input="a", truncation="all").json()["error"]["message"]
    )
