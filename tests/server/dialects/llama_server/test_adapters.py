"""/lora-adapters, and the field ``lora`` of requests."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import httpx
import pytest


@pytest.fixture
def engine(fakes: Any) -> Any:
    return fakes.engine()


@pytest.fixture
def http(serve: Any, engine: Any) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=serve(engine)) as client:
        yield client


def test_listed_and_set(http: Any) -> None:
    """What the list does not name is off."""
    listed = http.get("/lora-adapters").json()
    assert [(a["id"], a["path"], a["scale"]) for a in listed] == [
        (0, "a.gguf", 1.0), (1, "b.gguf", 1.0),
    ]  # fmt: skip
    answer = http.post("/lora-adapters", json=[{"id": 1, "scale": 0.25}])
    assert (answer.status_code, answer.json()) == (200, {"success": True})
    assert [a["scale"] for a in http.get("/lora-adapters").json()] == [0.0, 0.25]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"id": 0, "scale": 1}, "must be a JSON array"),
        ([{"id": 0}], "Field '[0]': Object missing required field `scale`"),
        ([{"id": 0, "scale": 1.0}, 5], "Field '[1]': Expected `object`, got `int`"),
        ([{"id": 0, "scale": "1"}], "Field '[0].scale': Expected `float`, got `str`"),
        ([{"id": 7, "scale": 1.0}], "no LoRA adapter 7"),
    ],
)
def test_what_is_refused(http: Any, body: Any, message: str) -> None:
    answer = http.post("/lora-adapters", json=body)
    assert answer.status_code == 400
    assert message in answer.json()["error"]["message"]


def test_scales_of_a_request(http: Any, engine: Any) -> None:
    for lora, expected in ((None, None), ([], ()), ([{"id": 1, "scale": 0.5}], ((1, 0.5),))):
        fields = {} if lora is None else {"lora": lora}
        http.post("/completion", json={"prompt": "a", **fields})
        assert engine.requests[-1].adapters == expected


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/completion", {"prompt": "a"}),
        ("/v1/chat/completions", {"messages": [{"role": "user", "content": "a"}]}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}]}),
        ("/api/generate", {"prompt": "a"}),
    ],
)
def test_an_adapter_by_its_name(http: Any, engine: Any, path: str, body: Any) -> None:
    names = {"base:b": ((1, 1.0),), "qwen:7b": None, "b": ((1, 1.0),), "tiny.gguf": None}
    for model, expected in names.items():
        assert http.post(path, json=body | {"model": model}).status_code == 200
        assert engine.requests[-1].adapters == expected
    own = body | {"model": "base:b", "lora": []}
    if path == "/completion":
        http.post(path, json=own)
        assert engine.requests[-1].adapters == ()
