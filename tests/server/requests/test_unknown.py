"""No field is dropped in silence: it acts, is refused, is said to change nothing, or is told of."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import httpx
import msgspec
import pytest

from gguf_serve.server.app import create_app
from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.requests import unknown
from gguf_serve.server.requests.conversation import CHAT_UNSUPPORTED
from gguf_serve.server.requests.fields import UNSUPPORTED
from gguf_serve.server.requests.service import Service
from gguf_serve.server.requests.unknown import UnknownFields, known_fields

API = Path(__file__).resolve().parents[3] / "docs" / "api.md"
CHAT = {"messages": [{"role": "user", "content": "hi"}]}
KNOWN = frozenset({"known"})


def warnings_of(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.name == unknown.__name__]


def test_each_is_told_of_once(caplog: pytest.LogCaptureFixture) -> None:
    fields = UnknownFields()
    for path in ("/a", "/a", "/b"):
        fields.note(path, {"known": 1, "new": 2}, KNOWN)
    assert warnings_of(caplog) == [
        f"{path}: the field 'new' is not known here: ignored" for path in ("/a", "/b")
    ]


def test_invented_names_fill_neither_log_nor_memory(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(unknown, "MOST_TOLD", 3)
    fields = UnknownFields()
    fields.note("/a", [str(number) for number in range(10)], KNOWN)
    fields.note("/a", ["x" * 10_000], KNOWN)
    assert len(warnings_of(caplog)) == 3
    UnknownFields().note("/a", ["x" * 10_000], KNOWN)
    assert len(warnings_of(caplog)[-1]) < 200


def test_what_is_no_struct_has_no_fields() -> None:
    assert known_fields([list[int]], ()) is None

    class Renamed(msgspec.Struct):
        a_b: int = msgspec.field(name="a.b")

    assert known_fields([Renamed], ["c"]) == {"a.b", "c"}


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/v1/chat/completions", CHAT),
        ("/v1/completions", {"prompt": "a"}),
        ("/completion", {"prompt": "a"}),
        ("/v1/responses", {"input": "a"}),
        ("/v1/messages", CHAT),
        ("/api/chat", CHAT),
        ("/api/generate", {"prompt": "a"}),
        ("/v1/embeddings", {"input": "a"}),
        ("/api/embed", {"input": "a"}),
    ],
)
def test_a_field_that_nobody_knows(
    serve: Any, fakes: Any, caplog: pytest.LogCaptureFixture, path: str, body: dict[str, Any]
) -> None:
    url = serve(fakes.engine())
    with caplog.at_level(logging.WARNING):
        httpx.post(url + path, json=body | {"model": "m", "temprature": 1, "absent": None})
    assert warnings_of(caplog) == [f"{path}: the field 'temprature' is not known here: ignored"]


def test_an_option_of_ollama_that_nobody_knows(
    serve: Any, fakes: Any, caplog: pytest.LogCaptureFixture
) -> None:
    options = {"temprature": 1, "num_ctx": 100, "num_gpu": 1, "top_k": 5}
    url = serve(fakes.engine())
    with caplog.at_level(logging.WARNING):
        httpx.post(url + "/api/chat", json=CHAT | {"model": "m", "options": options})
    told = "/api/chat: the field 'options.temprature' is not known here: ignored"
    assert warnings_of(caplog) == [told]


@pytest.mark.parametrize(
    ("path", "body", "refused"),
    [
        ("/v1/chat/completions", CHAT, CHAT_UNSUPPORTED),
        ("/v1/completions", {"prompt": "a"}, UNSUPPORTED),
        ("/v1/responses", {"input": "a"}, UNSUPPORTED),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(
    serve: Any, fakes: Any, path: str, body: dict[str, Any], refused: dict[str, Any]
) -> None:
    url = serve(fakes.engine())
    for name in refused:
        answer = httpx.post(url + path, json=body | {name: "something"})
        assert answer.status_code == 400, name
        assert f"'{name}'" in answer.json()["error"]["message"]


def test_the_docs_name_every_field(fakes: Any) -> None:
    """Of every route's bodies, those that change nothing and those that are refused among them."""
    text = API.read_text("utf-8")
    options = (API.parent / "options.md").read_text("utf-8")
    routes: Any = create_app(Service(fakes.engine())).routes
    known = {
        name
        for route in routes
        if isinstance(route, Post) and not route.path.startswith("/page/")
        for name in route.known or ()
    }
    missing = {name for name in known if f"`{name}`" not in text and f"`{name}`" not in options}
    assert not missing
