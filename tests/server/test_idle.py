"""The model leaves memory when nobody asks, and comes back for the next request."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.options import AdapterState
from gguf_serve.engine.request import Event, Request
from gguf_serve.server.requests.service import Endpoints

BODY = {"messages": [{"role": "user", "content": "hi"}]}


def until(condition: Any) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < 20
        time.sleep(0.01)


def test_sleep_and_waking_up(serve: Any, fakes: Any) -> None:
    goes_on, loaded = threading.Event(), []

    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        goes_on.wait(20)
        yield from fakes.say("Hello")(request, cancelled)

    first, second = fakes.engine(), fakes.engine(script)

    def load() -> Any:
        time.sleep(0.1)
        loaded.append(second)
        return second

    url = serve(first, sleep=(0.3, load))
    chat = url + "/v1/chat/completions"
    assert httpx.post(chat, json=BODY).status_code == 200
    until(lambda: httpx.get(url + "/props").json()["is_sleeping"])
    until(lambda: not first.healthy)  # a thread closes it
    assert httpx.get(url + "/health").status_code == 200
    assert httpx.get(url + "/v1/models").json()["data"]
    assert loaded == []  # none of these has woken it
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(httpx.post, chat, json=BODY, timeout=20)
        until(lambda: second.requests)
        assert loaded == [second]
        assert not httpx.get(url + "/props").json()["is_sleeping"]
        goes_on.set()
        assert answer.result().status_code == 200
    assert len(second.requests) == 1
    until(lambda: httpx.get(url + "/props").json()["is_sleeping"])


def test_adapters_come_back(serve: Any, fakes: Any, tmp_path: Path) -> None:
    """With their names and scales; one whose file is gone does not."""
    for name in ("p", "q"):
        (tmp_path / f"{name}.gguf").touch()

    class Careful(fakes.engine):  # type: ignore[misc]
        def load_adapter(self, path: Path, name: str, replaces: int | None = None) -> AdapterState:
            if not path.exists():
                raise RequestError(f"there is no {path}")
            added: AdapterState = super().load_adapter(path, name, replaces)
            return added

    engines = [Careful(), Careful()]
    waking = iter(engines[1:])
    endpoints = Endpoints(lora_folder=tmp_path)
    url = serve(engines[0], sleep=(-1, lambda: next(waking)), endpoints=endpoints)
    for name in ("p", "q"):
        body = {"lora_name": name, "lora_path": f"{name}.gguf"}
        assert httpx.post(url + "/v1/load_lora_adapter", json=body).status_code == 200
    scales = [{"id": 1, "scale": 0.5}, {"id": 3, "scale": 0.25}]
    assert httpx.post(url + "/lora-adapters", json=scales).status_code == 200
    unload = {"model": "m", "keep_alive": 0}
    assert httpx.post(url + "/api/generate", json=unload).status_code == 200
    until(lambda: httpx.get(url + "/props").json()["is_sleeping"])
    (tmp_path / "p.gguf").unlink()
    assert httpx.post(url + "/v1/chat/completions", json=BODY).status_code == 200
    found = [(each.name, each.scale) for each in engines[1].adapters()]
    assert found == [("a", 0.0), ("b", 0.5), ("q", 0.25)]


def test_a_response_in_the_background_keeps_it_awake(serve: Any, fakes: Any) -> None:
    engine = fakes.engine(fakes.say("abcdef", pause=0.1))
    url = serve(engine, sleep=(0.05, lambda: engine)) + "/v1/responses"
    answer = httpx.post(url, json={"input": "hi", "background": True}).json()
    until(lambda: httpx.get(f"{url}/{answer['id']}").json()["status"] == "completed")
    assert engine.cancelled == []


def test_a_running_request_keeps_it_awake(serve: Any, fakes: Any) -> None:
    engine = fakes.engine(fakes.say("abcdef", pause=0.1))
    url = serve(engine, sleep=(0.2, lambda: engine))
    answer = httpx.post(url + "/v1/chat/completions", json=BODY).json()
    assert answer["choices"][0]["message"]["content"] == "abcdef"
