"""Embeddings and reranking in the shapes of all their APIs."""

from __future__ import annotations

import base64
import struct
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import ollama
import openai
import pytest

from gguf_serve.engine.request import (
    Embedded,
    Embedding,
    Event,
    Finished,
    Ranking,
    Request,
    Started,
    Timings,
)


def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
    """Vectors (3 n, 4 n, 0) of length 5 n for a prompt of n tokens; the score is n."""
    n = float(len(request.prompt))
    yield Started(len(request.prompt), 0, 0)
    if isinstance(request.wants, Ranking):
        yield Embedded(((n, -n),))
    elif request.wants == Embedding("none"):
        yield Embedded(tuple((3.0 * k, 4.0 * k, 0.0) for k in range(1, len(request.prompt) + 1)))
    else:
        yield Embedded(((3 * n, 4 * n, 0.0),))
    yield Finished("limit", Timings())


@pytest.fixture
def engine(fakes: Any) -> Any:
    made = fakes.engine(script)
    made.info = replace(made.info, pooling="mean")
    return made


@pytest.fixture
def url(serve: Any, engine: Any) -> str:
    return serve(engine)


def test_openai(url: str, client: Any, engine: Any) -> None:
    answer = client(url).embeddings.create(model="m", input=["ab", "c"], encoding_format="float")
    assert [item.embedding for item in answer.data] == [pytest.approx([0.6, 0.8, 0.0])] * 2
    assert [item.index for item in answer.data] == [0, 1]
    assert answer.usage.prompt_tokens == 5
    assert sorted(len(request.prompt) for request in engine.requests) == [2, 3]
    assert all(request.wants == Embedding("mean") for request in engine.requests)


def test_the_client_asks_for_base64(url: str, client: Any) -> None:
    answer = client(url).embeddings.create(model="m", input="ab")
    assert answer.data[0].embedding == pytest.approx([0.6, 0.8, 0.0])
    body = {"input": "x", "encoding_format": "base64"}
    text = httpx.post(url + "/v1/embeddings", json=body).json()["data"][0]["embedding"]
    assert struct.unpack("<3f", base64.b64decode(text)) == pytest.approx((0.6, 0.8, 0.0))


def test_dimensions(url: str, client: Any) -> None:
    create = client(url).embeddings.create
    answer = create(model="m", input="x", dimensions=1, encoding_format="float")
    assert answer.data[0].embedding == [1.0]
    with pytest.raises(openai.BadRequestError, match="dimensions"):
        create(model="m", input="x", dimensions=9)


def test_tokens(url: str, client: Any, engine: Any) -> None:
    client(url).embeddings.create(model="m", input=[[7, 8], [9]])
    assert [request.prompt for request in engine.requests] == [(7, 8), (9,)]


def test_native(serve: Any, engine: Any) -> None:
    url = serve(engine, pooling="none", embd_normalize=-1)
    answer = httpx.post(url + "/embedding", json={"content": "a"}).json()
    raw = [{"index": 0, "embedding": [[3.0, 4.0, 0.0], [6.0, 8.0, 0.0]]}]
    assert answer == raw
    # As llama-server, which normalizes what is pooled.
    assert httpx.post(url + "/embedding", json={"content": "a", "embd_normalize": 2}).json() == raw
    # APIs with one vector for a text have the mean then.
    body = {"input": "a", "embd_normalize": 2}
    answer = httpx.post(url + "/v1/embeddings", json=body).json()
    assert answer["data"][0]["embedding"] == pytest.approx([0.6, 0.8, 0.0])
    assert engine.requests[-1].wants == Embedding("mean")


def test_a_server_of_vectors_alone_writes_no_text(serve: Any, engine: Any) -> None:
    url = serve(engine, only_vectors=True)
    assert httpx.post(url + "/v1/embeddings", json={"input": "a"}).status_code == 200
    for path, body in (("/completion", {"prompt": "a"}), ("/v1/responses", {"input": "a"})):
        refused = httpx.post(url + path, json=body)
        assert refused.status_code == 501
        assert "--embedding" in refused.json()["error"]["message"]


def test_ollama(url: str) -> None:
    client = ollama.Client(host=url)
    answer = client.embed("m", ["a", "b"])
    assert answer.embeddings == [pytest.approx([0.6, 0.8, 0.0])] * 2
    assert (answer.prompt_eval_count, answer.total_duration is None) == (4, False)
    assert client.embed("m", "x" * 2000).prompt_eval_count == 1000
    with pytest.raises(ollama.ResponseError, match="context size"):
        client.embed("m", "x" * 2000, truncate=False)
    assert client.embeddings("m", "a").embedding == [6.0, 8.0, 0.0]
    for nothing in ("", []):
        assert client.embed("m", nothing).embeddings == []
    assert client.embeddings("m", "").embedding == []
    client._client.close()


@pytest.mark.parametrize(
    ("body", "name"),
    [
        ({}, "input"),
        ({"input": []}, "input"),
        ({"input": 5}, "input"),
        ({"content": [True]}, "content"),
    ],
)
def test_refusals_name_the_field(url: str, body: Any, name: str) -> None:
    response = httpx.post(url + "/v1/embeddings", json=body)
    assert response.status_code == 400
    assert f"'{name}'" in response.json()["error"]["message"]


def test_rerank(serve: Any, engine: Any) -> None:
    url = serve(engine)
    documents: list[Any] = ["a", "ccc", {"text": "bb"}]
    body = {"query": "q", "documents": documents, "top_n": 2, "return_documents": True}
    assert httpx.post(url + "/rerank", json=body).status_code == 501
    engine.info = replace(engine.info, ranks=True)
    answer = httpx.post(url + "/v1/rerank", json=body).json()
    assert answer["results"] == [
        {"index": 1, "relevance_score": 6.0, "document": {"text": "ccc"}},
        {"index": 2, "relevance_score": 5.0, "document": {"text": "bb"}},
    ]
    assert answer["usage"]["prompt_tokens"] == 4 + 6 + 5
    assert engine.requests[0].prompt == (256, *b"q", 257, *b"a")
    body = {"query": "q", "texts": ["a", "bb"], "return_text": True}
    answer = httpx.post(url + "/reranking", json=body).json()
    assert answer == [
        {"index": 1, "score": 5.0, "text": "bb"},
        {"index": 0, "score": 4.0, "text": "a"},
    ]
    refused = httpx.post(url + "/rerank", json=body | {"instruction": "i"}).json()
    assert "instruction" in refused["error"]["message"]
    response = httpx.post(url + "/rerank", json={"query": "q", "documents": []})
    assert "documents" in response.json()["error"]["message"]


def test_cohere(serve: Any, engine: Any) -> None:
    url = serve(engine)
    body = {"model": "m", "texts": ["ab", "c"], "input_type": "search_query",
            "embedding_types": ["float", "base64"], "output_dimension": 2}  # fmt: skip
    answer = httpx.post(url + "/v2/embed", json=body).json()
    assert answer["embeddings"]["float"] == [pytest.approx([0.6, 0.8])] * 2
    packed = base64.b64decode(answer["embeddings"]["base64"][1])
    assert struct.unpack("<2f", packed) == pytest.approx((0.6, 0.8))
    assert answer["meta"]["billed_units"] == {"input_tokens": 5}
    for wrong in ({"embedding_types": ["int8"]}, {"images": ["x"]}, {"texts": []}):
        refused = httpx.post(url + "/v2/embed", json=body | wrong)
        assert refused.status_code == 400
        assert list(refused.json()) == ["message"]
    asked = {"query": "q", "documents": ["a", "ccc", {"text": "bb"}], "top_n": 2}
    assert httpx.post(url + "/v2/rerank", json=asked).status_code == 501
    engine.info = replace(engine.info, ranks=True)
    assert httpx.post(url + "/v2/rerank", json=asked).json()["results"] == [
        {"index": 1, "relevance_score": 6.0},
        {"index": 2, "relevance_score": 5.0},
    ]


def test_score(serve: Any, engine: Any) -> None:
    url = serve(engine) + "/v1/score"

    def scores(first: Any, second: Any) -> list[float]:
        answer = httpx.post(url, json={"text_1": first, "text_2": second}).json()
        assert [entry["index"] for entry in answer["data"]] == list(range(len(answer["data"])))
        return [entry["score"] for entry in answer["data"]]

    assert scores("a", "b") == [pytest.approx(1.0)]
    assert scores("a", ["b", "cc"]) == [pytest.approx(1.0)] * 2
    assert scores(["a", "b"], ["c", "d"]) == [pytest.approx(1.0)] * 2
    refused = httpx.post(url, json={"text_1": ["a", "b"], "text_2": ["c", "d", "e"]})
    assert "'text_2': 3 texts" in refused.json()["error"]["message"]
    engine.info = replace(engine.info, ranks=True)
    assert scores("q", ["a", "ccc"]) == [4.0, 6.0]
    refused = httpx.post(url, json={"text_1": ["a", "b"], "text_2": ["c", "d"]})
    assert "'text_1'" in refused.json()["error"]["message"]


def test_a_template_for_reranking(serve: Any, engine: Any) -> None:
    """As Qwen3's rerankers have it: with an instruction of its own, or the client's. What a text
    has in braces stays."""
    template = "<Instruct>: find it\n<Query>: {query}\n<Document>: {document}<end>"
    engine.info = replace(engine.info, ranks=True, rerank_template=template)
    url = serve(engine)
    for given, instruction in (({}, "find it"), ({"instruction": "{query}?"}, "{query}?")):
        body = {"query": "a {document}", "documents": ["b {query}"]} | given
        assert httpx.post(url + "/rerank", json=body).status_code == 200
        expected = (
            f"<Instruct>: {instruction}\n<Query>: a {{document}}\n<Document>: b {{query}}<end>"
        )
        assert engine.requests[-1].prompt == tuple(expected.encode())
