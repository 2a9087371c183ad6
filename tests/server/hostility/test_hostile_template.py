"""A template that does its worst in a running server: others are answered meanwhile."""

from __future__ import annotations

import threading
import time
from typing import Any

import httpx

from gguf_serve.engine.chat.rendering.confined import ConfinedTemplate, Templates
from gguf_serve.engine.child import Limits

# For one word only; "equality" of lists that are the same, 2 ** 40 times over.
SOURCE = (
    "{% if messages[0].content == 'harm' %}{% set ns = namespace(a=[1], b=[1]) %}"
    "{% for _ in range(40) %}{% set ns.a = [ns.a, ns.a] %}{% set ns.b = [ns.b, ns.b] %}"
    "{% endfor %}{{ ns.a is eq ns.b }}{% endif %}{{ messages[0].content }}"
)
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"


def confined(source: str, seconds: float) -> ConfinedTemplate:
    return ConfinedTemplate(Templates(source), Limits(seconds, memory=64 << 20))


def chat(url: str, text: str) -> httpx.Response:
    body = {"messages": [{"role": "user", "content": text}]}
    return httpx.post(url + "/v1/chat/completions", json=body, timeout=60)


def test_everything_else_is_answered_meanwhile(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    engine.chat_template = confined(SOURCE, seconds=100.0)
    url = serve(engine)
    assert chat(url, "hi").status_code == 200
    answers: list[httpx.Response] = []
    harm = threading.Thread(target=lambda: answers.append(chat(url, "harm")))
    harm.start()
    time.sleep(0.3)  # until it is at work
    with httpx.Client(timeout=60) as client:
        for _ in range(10):
            assert client.get(url + "/health").status_code == 200
    assert chat(url, "hi").status_code == 200
    assert harm.is_alive()
    engine.chat_template.close()
    harm.join()
    assert answers[0].status_code == 400
    assert "chat template: its process has ended" in answers[0].text
    assert chat(url, "hi").status_code == 200
    engine.chat_template.close()


def test_it_has_its_time_and_others_have_theirs(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    engine.chat_template = confined(SOURCE, seconds=1.0)
    url = serve(engine)
    answer = chat(url, "harm")
    assert answer.status_code == 400
    assert "chat template: it took more than 1 seconds" in answer.text
    assert chat(url, "hi").status_code == 200
    engine.chat_template.close()


def test_a_template_without_an_end_supports_nothing(serve: Any, fakes: Any) -> None:
    engine = fakes.engine()
    engine.chat_template = confined(ENDLESS, seconds=1.0)
    url = serve(engine)
    assert httpx.get(url + "/props", timeout=60).json()["chat_template_caps"] == {}
    assert "completion" in httpx.post(url + "/api/show", json={}).json()["capabilities"]
    assert "more than 1 seconds" in chat(url, "hi").text
    engine.chat_template.close()
