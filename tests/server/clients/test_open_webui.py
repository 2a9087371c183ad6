"""What Open WebUI 0.12.4 has sent, of each kind one request (test_programs.py runs it itself).

Of its own tools, which its page offers in every chat, 21 of 36 are there, with their schemas and
without their descriptions; long texts are cut.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.request import Embedded, Embedding, Event, Finished, Timings
from gguf_serve.server.requests import unknown

RECORDED = Path(__file__).resolve().parents[2] / "data" / "clients" / "open_webui.jsonl"


@pytest.fixture
def engine(fakes: Any) -> Any:
    """It says something, and has vectors."""

    def script(request: Any, cancelled: Any) -> Iterator[Event]:
        if not isinstance(request.wants, Embedding):
            yield from fakes.say("Hello")(request, cancelled)
            return
        yield Embedded(((3.0, 4.0),))
        yield Finished("limit", Timings())

    engine = fakes.engine(script, n_ctx=10**5)
    engine.chat_template = ChatTemplate(fakes.hermes)
    return engine


def test_everything_is_known(serve: Any, engine: Any, caplog: pytest.LogCaptureFixture) -> None:
    url = serve(engine)
    asked = [json.loads(line) for line in RECORDED.read_text("utf-8").splitlines()]
    with caplog.at_level(logging.WARNING):
        for one in asked:
            answer = httpx.post(url + one["path"], json=one["body"])
            assert answer.status_code == 200, answer.text
    assert not [record for record in caplog.records if record.name == unknown.__name__]
    constraints = [request.constraint.text for request in engine.requests if request.constraint]
    (own_tools,) = [text for text in constraints if "query_knowledge_files" in text]
    assert own_tools.count("%json") == 19  # each schema is enforced; two tools take nothing


def test_its_connections(serve: Any, engine: Any) -> None:
    """The lists that it asks for, and what verifies a connection."""
    with httpx.Client(base_url=serve(engine)) as http:
        model, *adapters = http.get("/v1/models").json()["data"]
        assert {each["parent"] for each in adapters} == {model["id"]}
        (same,) = http.get("/api/tags").json()["models"]
        assert model["id"] == same["model"] == "tiny.Q8_0.gguf"
        assert http.get("/api/ps").json()["models"][0]["model"] == model["id"]
        version = http.get("/api/version").json()["version"]
        assert tuple(map(int, version.split("."))) >= (0, 13, 4)  # what Codex asks for
