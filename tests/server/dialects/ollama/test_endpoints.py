"""Ollama's API, through the ollama client."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import httpx
import ollama
import pytest

from gguf_serve.server.dialects.ollama.input import ChatFields, chat_body
from gguf_serve.server.requests.fields import convert

TEXT = "Hello wörld"
N_BYTES = len(TEXT.encode())
USER = [{"role": "user", "content": "hi"}]


@pytest.fixture
def engine(fakes: Any) -> Any:
    return fakes.engine()


@pytest.fixture
def url(serve: Any, engine: Any) -> str:
    return serve(engine)


@pytest.fixture
def client() -> Iterator[Callable[..., ollama.Client]]:
    clients: list[ollama.Client] = []

    def make(url: str) -> ollama.Client:
        clients.append(ollama.Client(host=url, timeout=20))
        return clients[-1]

    yield make
    for made in clients:
        made._client.close()


def test_chat(url: str, client: Any, engine: Any) -> None:
    options = {"temperature": 0.5, "num_predict": 40, "seed": 3, "stop": ["X"], "num_ctx": 9999}
    answer = client(url).chat("m", USER, options=options)
    assert (answer.message.role, answer.message.content) == ("assistant", TEXT)
    assert (answer.done, answer.done_reason, answer.model) == (True, "stop", "tiny.Q8_0.gguf")
    assert (answer.eval_count, answer.eval_duration) == (N_BYTES, 100_000_000)
    assert (answer.prompt_eval_count, answer.prompt_eval_duration) == (20, 10_000_000)
    assert answer.total_duration > 0
    (request,) = engine.requests
    assert (request.max_tokens, request.stop, request.sampling.seed) == (40, ("X",), 3)
    assert request.sampling.temperature == 0.5


def test_chat_stream(url: str, client: Any) -> None:
    *parts, last = list(client(url).chat("m", USER, stream=True))
    assert "".join(part.message.content for part in parts) == TEXT
    assert not any(part.done for part in parts)
    assert (last.done, last.message.content, last.eval_count) == (True, "", N_BYTES)


def test_streams_are_lines_of_json_and_the_default(url: str) -> None:
    response = httpx.post(url + "/api/chat", json={"model": "m", "messages": USER})
    assert response.headers["content-type"] == "application/x-ndjson"
    lines = [json.loads(line) for line in response.text.splitlines()]
    assert "".join(line["message"]["content"] for line in lines) == TEXT
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]


def test_generate(url: str, client: Any, engine: Any) -> None:
    answer = client(url).generate("m", "hi", system="Be brief")
    assert (answer.response, answer.done_reason) == (TEXT, "stop")
    assert engine.chat_template.asked()["messages"] == [
        {"role": "system", "content": "Be brief"},
        {"role": "user", "content": "hi"},
    ]
    assert "".join(part.response for part in client(url).generate("m", "x", stream=True)) == TEXT


@pytest.mark.parametrize("stream", [False, True])
def test_a_context_is_what_the_next_answer_goes_on_from(
    url: str, client: Any, engine: Any, stream: bool
) -> None:
    def generate(prompt: str, **fields: Any) -> Any:
        answer = client(url).generate("m", prompt, stream=stream, **fields)
        return list(answer)[-1] if stream else answer

    first = generate("one").context
    assert first == [*engine.requests[0].prompt, *TEXT.encode()]
    second = generate("two", context=first).context
    prompt = engine.requests[1].prompt
    assert prompt == (*first, *b"user: two\nassistant:")  # without a second BOS
    assert second == [*prompt, *TEXT.encode()]
    assert generate("raw", raw=True).context is None


def test_a_context_before_a_template_that_begins_with_bos(
    url: str, client: Any, engine: Any
) -> None:
    """Of a model whose tokenizer adds none, it is a part of the message."""
    encode = engine.tokenizer.encode
    engine.tokenizer.encode = lambda text, add_special=True, parse_special=True, most=0: encode(
        text, add_special=False, parse_special=parse_special
    )
    client(url).generate("m", "one", context=[1, 2])
    assert engine.requests[0].prompt == (1, 2, 256, *b"user: one\nassistant:")


def test_generate_raw(url: str, client: Any, engine: Any) -> None:
    assert client(url).generate("m", "hi", raw=True, options={"num_predict": 2}).response == "He"
    assert engine.requests[0].prompt == (256, *b"hi")


def test_a_format_holds_for_every_kind_of_request(url: str, client: Any, engine: Any) -> None:
    client(url).chat("m", USER, format={"type": "object"})
    client(url).generate("m", "x", format="json")
    client(url).generate("m", "x", format="json", raw=True)
    kinds = [request.constraint.kind for request in engine.requests]
    assert kinds == ["json_schema"] * 3


def test_generate_with_a_suffix(serve: Any, fakes: Any, client: Any) -> None:
    engine = fakes.engine()
    with pytest.raises(ollama.ResponseError, match="Infill"):
        client(serve(engine)).generate("m", "a", suffix="b")
    engine.tokenizer.fim = fakes.fim(prefix=1, suffix=2, middle=3)
    client(serve(engine)).generate("m", "a", suffix="b")
    assert engine.requests[0].prompt == (256, 1, *b"a", 2, *b"b", 3)


def test_nothing_to_answer_loads_the_model(url: str, client: Any) -> None:
    answer = client(url).generate("m")
    assert (answer.done, answer.done_reason, answer.response) == (True, "load", "")
    assert client(url).chat("m", keep_alive=0).done_reason == "unload"


def test_num_ctx_ends_the_answer_and_drops_the_oldest_turns(
    url: str, client: Any, engine: Any
) -> None:
    asked = {"messages": USER, "options": {"num_ctx": 24}}
    answer = client(url).chat("m", **asked)
    n_prompt = len(engine.requests[0].prompt)
    assert (answer.done_reason, answer.eval_count) == ("length", 24 - n_prompt)
    turns = [{"role": "user", "content": "old" * 20}, {"role": "assistant", "content": "yes"}]
    client(url).chat("m", **asked | {"messages": [*turns, *USER]})
    assert engine.requests[0].prompt == engine.requests[1].prompt
    for fields in ({"truncate": False}, {}):
        messages = [*turns, *USER] if fields else [{"role": "user", "content": "x" * 30}]
        body = {"messages": messages, "options": {"num_ctx": 24}} | fields
        refused = httpx.post(url + "/api/chat", json=body)
        assert refused.status_code == 400
        assert "exceeds the available context size (24 tokens)" in refused.json()["error"]


def test_logprobs(url: str) -> None:
    body = {"messages": USER, "stream": False, "logprobs": True, "top_logprobs": 2}
    answer = httpx.post(url + "/api/chat", json=body).json()
    assert [entry["token"] for entry in answer["logprobs"][:2]] == ["H", "e"]
    assert len(answer["logprobs"][0]["top_logprobs"]) == 2


def test_models(url: str, client: Any) -> None:
    (model,) = client(url).list().models
    assert (model.model, model.size, model.details.quantization_level) == (
        "tiny.Q8_0.gguf",
        2_000_000,
        "Q8_0",
    )
    assert len(model.digest) == 64
    assert client(url).list().models[0].digest == model.digest
    (running,) = client(url).ps().models
    assert (running.model, running.context_length) == ("tiny.Q8_0.gguf", 1000)
    shown = client(url).show("m")
    assert shown.capabilities == ["completion", "tools"]
    assert shown.modelinfo["llama.context_length"] == 512
    assert shown.template == "{{ lines }}"
    assert httpx.get(url + "/api/version").json()["version"]


def test_an_encoder_has_embeddings_alone(serve: Any, fakes: Any, client: Any) -> None:
    engine = fakes.engine()
    engine.info = replace(engine.info, is_encoder=True, pooling="cls")
    url = serve(engine)
    assert client(url).show("m").capabilities == ["embedding"]
    for path in ("/api/tags", "/v1/models"):
        assert httpx.get(url + path).json()["models"][0]["capabilities"] == ["embedding"]


def test_managing_models_is_refused(url: str, client: Any) -> None:
    made = client(url)
    for call in (
        lambda: made.pull("m"),
        lambda: made.push("m"),
        lambda: made.copy("a", "b"),
        lambda: made.delete("m"),
        lambda: made.create("m", from_="x"),
    ):
        with pytest.raises(ollama.ResponseError, match="one model file") as caught:
            call()
        assert caught.value.status_code == 501


@pytest.mark.parametrize(
    ("path", "fields", "name"),
    [
        ("chat", {"messages": [{"role": "user", "content": "x", "images": ["aa"]}]}, "images"),
        ("chat", {"messages": USER, "format": "yaml"}, "format"),
        ("chat", {"messages": USER, "options": {"seed": "x"}}, "options.seed"),
        ("chat", {"messages": USER, "options": {"num_predict": 10**30}}, "num_predict"),
        ("chat", {"messages": [{"role": "user"}]}, "messages[0].content"),
        ("generate", {"prompt": "x", "template": "{{ .Prompt }}"}, "template"),
        ("generate", {"prompt": "x", "raw": True, "context": [1]}, "context"),
        ("generate", {"prompt": "x", "context": [1, 258]}, "context"),
        ("generate", {"prompt": "x", "options": {"stop": ["x"] * 257}}, "options.stop"),
    ],
)
def test_refusals_name_the_field(url: str, path: str, fields: Any, name: str) -> None:
    response = httpx.post(f"{url}/api/{path}", json=fields)
    assert response.status_code == 400
    assert name in response.json()["error"]


def test_errors_are_a_text(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine(n_ctx=10))
    response = httpx.post(url + "/api/chat", json={"messages": USER})
    assert response.status_code == 400
    assert "exceeds the available context size" in response.json()["error"]


def test_results_get_the_id_of_their_call() -> None:
    call = {"function": {"name": "f", "arguments": {"x": 1}}}
    messages = [
        {"role": "assistant", "content": "", "thinking": "hmm", "tool_calls": [call]},
        {"role": "tool", "tool_name": "f", "content": "42"},
    ]
    made = chat_body(convert({"messages": messages, "think": "low"}, ChatFields))
    assistant, result = made["messages"]
    assert assistant["reasoning_content"] == "hmm"
    assert assistant["tool_calls"][0]["function"] == {"name": "f", "arguments": '{"x":1}'}
    assert result["tool_call_id"] == assistant["tool_calls"][0]["id"] != ""
    assert made["reasoning_effort"] == "low"
