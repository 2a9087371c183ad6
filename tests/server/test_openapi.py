"""The OpenAPI document: what it lists, and that nothing in it ends in a fault."""

from __future__ import annotations

import html
import re
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from gguf_serve.engine.chat.rendering.selection import named_template
from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.request import (
    Delta,
    Embedded,
    Event,
    Finished,
    Request,
    Sound,
    Speaking,
    Started,
    Timings,
)
from gguf_serve.server.app import create_app
from gguf_serve.server.requests.service import Endpoints, Service


def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
    """An answer, a sound or a vector, whichever is asked for."""
    yield Started(len(request.prompt), 0, 0)
    if isinstance(request.wants, Speaking):
        yield Sound(bytes(100))
    else:
        yield Delta("ok", (1,)) if request.has_text else Embedded(((1.0, 2.0),))
    yield Finished("eos", Timings(predicted_n=1))


@pytest.fixture
def speaking_url(serve: Any, fakes: Any) -> str:
    engine = fakes.engine(script)
    engine.speech = fakes.speech()
    return str(serve(engine))


@pytest.fixture
def url(serve: Any, fakes: Any) -> str:
    engine = fakes.engine(script)
    engine.tokenizer.fim = fakes.fim(prefix=1, suffix=2, middle=3)
    engine.info = replace(engine.info, ranks=True)
    engine.chat_template = ChatTemplate(named_template("chatml"))
    return str(serve(engine, endpoints=Endpoints(props=True)))


def test_every_route_and_every_struct_is_there(url: str, fakes: Any) -> None:
    document = httpx.get(url + "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    routes: Any = create_app(Service(fakes.engine())).routes
    paths = {re.sub(r":\w+}", "}", route.path) for route in routes}
    ours = {path for path in paths if path == "/" or path.startswith("/page/")}  # no API
    assert set(document["paths"]) == paths - ours - {"/openapi.json", "/docs"}
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/Chat")
    assert "messages" in document["components"]["schemas"]["Chat"]["required"]


def test_the_page(url: str) -> None:
    page = httpx.get(url + "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "POST /v1/messages" in page.text
    assert "<code>stop_sequences</code>" in page.text


def test_the_page_is_by_dialect_and_what_is_refused_comes_last(url: str) -> None:
    document, page = (httpx.get(url + path) for path in ("/openapi.json", "/docs"))
    tags = [tag["name"] for tag in document.json()["tags"]]
    assert tags[-1] == "Not here"
    places = [page.text.index(f">{html.escape(tag)}</h2>") for tag in tags]
    assert places == sorted(places)
    assert places[-1] < page.text.index("DELETE /api/delete")
    assert page.text.index("POST /api/chat") < places[-1]
    assert 'rel="icon" href="data:' in page.text


def test_every_endpoint_has_a_sentence(url: str) -> None:
    for path, methods in httpx.get(url + "/openapi.json").json()["paths"].items():
        for method, one in methods.items():
            assert one["summary"].endswith("."), (method, path)


def test_examples_are_answered(url: str, speaking_url: str) -> None:
    """As the page sends them; but where there must be a file or an adapter first. A model that
    speaks does nothing else."""
    first = ("/v1/batches", "_lora_adapter")
    n = 0
    for path, methods in httpx.get(url + "/openapi.json").json()["paths"].items():
        body = methods.get("post", {}).get("requestBody", {}).get("content", {})
        example = body.get("application/json", {}).get("example")
        if example is not None and not path.endswith(first):
            asked = speaking_url if path.endswith("/audio/speech") else url
            answer = httpx.post(asked + path, json=example)
            assert answer.status_code == 200, (path, answer.text)
            n += 1
    assert n > 20


@pytest.mark.slow
@pytest.mark.timeout(1800)  # of all operations, of which each has 60 bodies
def test_schemathesis_finds_no_fault(url: str) -> None:
    """Bodies made of the schemas, and broken ones: none is answered with 500."""
    schemathesis = pytest.importorskip("schemathesis")
    from hypothesis import HealthCheck, Phase, settings

    schema = schemathesis.openapi.from_url(url + "/openapi.json")
    for result in schema.get_all_operations():
        operation = result.ok()

        @settings(
            max_examples=60,
            deadline=None,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )
        def run(case: Any) -> None:
            response = case.call(base_url=url)
            assert response.status_code != 500, response.text

        from hypothesis import given

        given(case=operation.as_strategy())(run)()
