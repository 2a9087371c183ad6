"""The OpenAPI document: what it lists, and that nothing in it ends in a fault."""

from __future__ import annotations

import re
from typing import Any

import httpx
import pytest

from server.app import create_app
from server.openapi import BODIES
from server.service import Service


@pytest.fixture
def url(serve: Any, fakes: Any) -> str:
    return str(serve(fakes.engine(fakes.say("ok"))))


def test_every_route_and_every_struct_is_there(url: str, fakes: Any) -> None:
    document = httpx.get(url + "/openapi.json").json()
    assert document["openapi"].startswith("3.1")
    routes: Any = create_app(Service(fakes.engine())).routes
    paths = {re.sub(r":\w+}", "}", route.path) for route in routes}
    assert set(document["paths"]) == paths - {"/openapi.json", "/docs"}
    for path in BODIES:
        assert any(described.endswith(path) for described in document["paths"])
    chat = document["paths"]["/v1/chat/completions"]["post"]
    assert chat["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith("/Chat")
    assert "messages" in document["components"]["schemas"]["Chat"]["required"]


def test_the_page(url: str) -> None:
    page = httpx.get(url + "/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "POST /v1/messages" in page.text
    assert "<code>stop_sequences</code>" in page.text


@pytest.mark.slow
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
