"""A template that does its worst in a running server: others are answered meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from gguf_serve.engine.chat.rendering.confined import ConfinedTemplate, Templates
from gguf_serve.engine.child import Limits

# For one word only; "equality" of lists that are the same, 2 ** 40 times over.
SOURCE = (
    "{% if messages[0].content == 'harm' %}{% set ns = namespace(a=[1], b=[1]) %}"
    "{% for _ in range(40) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}"
    "{% endfor %}{{ ns.a is eq ns.b }}{% endif %}{{ messages[0].content }}"
)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def confined(source: str) -> ConfinedTemplate:
    return ConfinedTemplate(Templates(source), Limits(seconds=1.0, memory=64 << 20))


@pytest.fixture
def url(serve: Any, fakes: Any) -> Iterator[str]:
    engine = fakes.engine()
    engine.chat_template = confined(SOURCE)
    yield serve(engine)
    engine.chat_template.close()


def chat(url: str, text: str) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}]}
    return httpx.post(url + "/v1/chat/completions", json=body, timeout=60)


def test_everything_else_is_answered_meanwhile(url: str) -> None:
    assert chat(url, "hi").status_code == 200
    answers: list[httpx.Response] = []
    harm = threading.Thread(target=lambda: answers.append(chat(url, "harm")))
    harm.start()
    longest, n = 0.0, 0
    with httpx.Client(timeout=60) as client:
        while harm.is_alive():
            begin = time.monotonic()
            assert client.get(url + "/health").status_code == 200
            longest = max(longest, time.monotonic() - begin)
            n += 1
            if n == 10:
                assert chat(url, "hi").status_code == 200
                assert harm.is_alive()
    harm.join()
    assert longest < 0.9  # the template's second is over before that
    assert n > 10
    assert answers[0].status_code == 400
    assert "chat template: it took more than 1 seconds" in answers[0].text
    assert chat(url, "hi").status_code == 200


def test_a_template_without_an_end_supports_nothing(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    engine.chat_template = confined(ENDLESS)
    url = serve(engine)
    assert httpx.get(url + "/props", timeout=60).json()["chat_template_caps"] == {}
    assert "completion" in httpx.post(url + "/api/show", json={}).json()["capabilities"]
    assert "more than 1 seconds" in chat(url, "hi").text
    engine.chat_template.close()
