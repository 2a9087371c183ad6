"""llama-server's own endpoints."""

from __future__ import annotations

from typing import Any

import httpx
import pytest

from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.server.dialects.llama_server import native
from gguf_serve.server.options.request_defaults import Defaults
from gguf_serve.server.requests import prompts


@pytest.fixture
def url(serve: Any, fakes: Any) -> str:
    sampling = SamplingParams(seed=11, logit_bias=((5, -float("inf")),))
    return serve(fakes.engine(), defaults=Defaults(sampling=sampling, max_tokens=77))


@pytest.mark.parametrize(
    ("path", "body", "message"),
    [
        ("/tokenize", {"content": "1" * 70}, "Field 'content': the text has 70 tokens, more than"),
        ("/tokenize", {"content": [1] * 70 + ["a"]}, "at least 70 tokens, more than 64"),
        ("/detokenize", {"tokens": [65] * 70}, "Field 'tokens': at most 64, got 70"),
        ("/detokenize", {"tokens": [256] * 50}, "their text is longer than 128 bytes"),
        ("/completion", {"prompt": [[65] * 150] * 3}, "more than 400 tokens together"),
        ("/v1/embeddings", {"input": ["A" * 150] * 3}, "more than 400 tokens together"),
    ],
)
def test_limits_of_tokens(
    serve: Any, fakes: Any, monkeypatch: pytest.MonkeyPatch, path: str, body: Any, message: str
) -> None:
    monkeypatch.setattr(native, "MAX_TOKENS", 64)
    monkeypatch.setattr(native, "MAX_TEXT", 128)
    monkeypatch.setattr(prompts, "MAX_PROMPT_TOKENS", 400)
    answer = httpx.post(serve(fakes.engine(n_ctx=200)) + path, json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_prompts_that_are_not_read_to_their_end(serve: Any, fakes: Any) -> None:
    """Endpoints that need a context tell what is known; those that only count, count on."""
    url, text = serve(fakes.engine(n_ctx=200)), "A" * 40_000
    messages = [{"role": "user", "content": text}]
    for path, body in (
        ("/completion", {"prompt": text}),
        ("/completion", {"prompt": [text, "b"]}),
        ("/v1/completions", {"prompt": [65, text]}),
        ("/v1/chat/completions", {"messages": messages}),
        ("/v1/messages", {"messages": messages, "max_tokens": 5}),
        ("/v1/responses", {"input": text}),
        ("/v1/embeddings", {"input": text}),
        ("/api/chat", {"messages": messages}),
        ("/api/generate", {"prompt": text, "raw": True}),
    ):
        answer = httpx.post(url + path, json=body)
        assert answer.status_code == 400, path
        assert "at least" in str(answer.json()["error"]), path
    for path in ("/v1/messages/count_tokens", "/v1/chat/completions/input_tokens"):
        body = {"messages": messages, "max_tokens": 5}
        assert httpx.post(url + path, json=body).json()["input_tokens"] > 40_000


@pytest.mark.parametrize(
    ("body", "tokens"),
    [
        ({"content": "hi"}, [104, 105]),
        ({"content": "hi", "add_special": True}, [256, 104, 105]),
        ({"content": "<s>"}, [256]),
        ({"content": "<s>", "parse_special": False}, [60, 115, 62]),
        ({"content": ["h", 105, "!"]}, [104, 105, 33]),
        ({"content": "hé", "with_pieces": True}, None),
    ],
)
def test_tokenize(url: str, body: dict[str, Any], tokens: list[int] | None) -> None:
    answer = httpx.post(url + "/tokenize", json=body).json()["tokens"]
    if tokens is None:
        pieces = [(104, "h"), (195, [195]), (169, [169])]
        assert answer == [{"id": id, "piece": piece} for id, piece in pieces]
    else:
        assert answer == tokens


def test_what_lm_eval_asks_of_a_remote_tokenizer(url: str) -> None:
    info = httpx.get(url + "/tokenizer_info").json()
    assert (info["bos_token"], info["eos_token"], info["chat_template"]) == (
        "<s>", "</s>", "{{ lines }}",
    )  # fmt: skip
    plain = {"prompt": "ab", "add_special_tokens": False}
    answer = httpx.post(url + "/tokenize", json=plain).json()
    assert answer == {"count": 2, "max_model_len": 1000, "tokens": [97, 98]}
    answer = httpx.post(url + "/tokenize", json={"prompt": "ab"}).json()
    assert answer["tokens"] == [256, 97, 98]
    assert "'content' is required" in httpx.post(url + "/tokenize", json={}).text


def test_detokenize(url: str) -> None:
    body = {"tokens": [256, *"hé".encode()]}
    assert httpx.post(url + "/detokenize", json=body).json() == {
        "content": "<s>hé",
        "prompt": "<s>hé",
    }


@pytest.mark.parametrize(
    ("path", "body", "name"),
    [
        ("/tokenize", {}, "content"),
        ("/tokenize", {"content": 5}, "content"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {"tokens": [258]}, "token 258"),
        ("/apply-template", {}, "messages"),
    ],
)
def test_bad_fields_are_named(url: str, path: str, body: dict[str, Any], name: str) -> None:
    response = httpx.post(url + path, json=body)
    assert response.status_code == 400
    assert name in response.json()["error"]["message"]


def test_apply_template(url: str) -> None:
    body = {"messages": [{"role": "user", "content": "hi"}]}
    answer = httpx.post(url + "/apply-template", json=body).json()
    assert answer == {"prompt": "<s>user: hi\nassistant:"}


def test_props(url: str) -> None:
    props = httpx.get(url + "/props").json()
    params = props["default_generation_settings"]["params"]
    assert (params["seed"], params["n_predict"]) == (11, 77)
    assert params["logit_bias"] == [{"token": 5, "bias": None}]
    assert props["default_generation_settings"]["n_ctx"] == 1000
    assert props["total_slots"] == 4
    assert props["model_path"] == "/models/tiny.Q8_0.gguf"
    assert props["model_alias"] == "tiny.Q8_0.gguf"
    assert (props["bos_token"], props["eos_token"]) == ("<s>", "</s>")
    assert props["chat_template"] == "{{ lines }}"
    assert props["chat_template_caps"] == {"supports_tools": True}
    assert props["modalities"] == {"vision": False, "video": False, "audio": False}
