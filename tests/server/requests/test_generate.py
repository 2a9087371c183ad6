"""What every generating endpoint shares."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

MESSAGES = [{"role": "user", "content": "Hello"}]


def openai_message(answer: Any) -> Any:
    assert answer["error"]["type"] == "not_supported_error"
    return answer["error"]["message"]


def anthropic_message(answer: Any) -> Any:
    assert answer["type"] == "error"
    return answer["error"]["message"]


def ollama_message(answer: Any) -> Any:
    return answer["error"]


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/v1/chat/completions", {"messages": MESSAGES}, openai_message),
        ("/v1/completions", {"prompt": "Hello"}, openai_message),
        ("/v1/responses", {"input": "Hello"}, openai_message),
        ("/v1/messages", {"messages": MESSAGES, "max_tokens": 9}, anthropic_message),
        ("/api/chat", {"messages": MESSAGES}, ollama_message),
        ("/api/generate", {"prompt": "Hello"}, ollama_message),
        ("/completion", {"prompt": "Hello"}, openai_message),
    ],
)
def test_a_model_that_speaks_writes_no_text(
    serve: Any, fakes: Any, path: str, body: dict[str, Any], message: Any, stream: bool
) -> None:
    engine = fakes.engine()
    engine.speech = fakes.speech()
    answer = httpx.post(serve(engine) + path, json={"model": "m", "stream": stream} | body)
    assert answer.status_code == 501
    told = "The model tiny.Q8_0.gguf speaks and writes no text: use /v1/audio/speech"
    assert message(answer.json()) == told
    assert not engine.requests
