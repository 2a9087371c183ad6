"""What takes long is done beside the event loop: meanwhile a running stream goes on."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

import gguf_serve.server.http.reply
import gguf_serve.server.requests.embeddings
import gguf_serve.server.requests.media
import gguf_serve.server.requests.service
from gguf_serve.engine.encoders.audio_file import AudioFile
from gguf_serve.engine.encoders.reader import MediaReader
from gguf_serve.engine.request import Embedded, Finished, Request, Started, Timings

IMAGE = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
SOUND = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
BIAS = {"prompt": [104], "n_predict": 1, "logit_bias": {"word": 1}}


class Gate:
    """Stops a function until it is opened; ``passed`` if that was in time."""

    def __init__(self) -> None:
        self.reached, self.opened = threading.Event(), threading.Event()
        self.passed = True

    def behind(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def stopped(*args: Any, **kwargs: Any) -> Any:
            self.reached.set()
            self.passed &= self.opened.wait(20)
            return function(*args, **kwargs)

        return stopped


@pytest.fixture
def engine(fakes: Any) -> Any:
    engine = fakes.engine()
    said = fakes.say("on and on " * 1000, pause=0.002)

    def script(request: Request, cancelled: threading.Event) -> Any:
        if request.has_text:
            yield from said(request, cancelled)
        else:
            yield Started(len(request.prompt), 0, 0)
            yield Embedded(((0.6, 0.8),))
            yield Finished("eos", Timings())

    engine.script = script
    engine.media = MediaReader(None, AudioFile("qwen3a", 40, 2, 2, 1e-5, 128, 1), n_embd=64)
    return engine


def user(part: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": [part]}]}


@pytest.mark.parametrize(
    ("place", "name", "path", "body"),
    [
        ("tokenizer", "encode", "/tokenize", {"content": "x"}),
        ("tokenizer", "piece", "/tokenize", {"content": "x", "with_pieces": True}),
        ("tokenizer", "decode", "/detokenize", {"tokens": [104]}),
        ("tokenizer", "encode", "/completion", BIAS),
        (gguf_serve.server.requests.media, "from_base64", "/v1/chat/completions", user(SOUND)),
        (gguf_serve.server.requests.media, "from_data_url", "/v1/chat/completions", user(IMAGE)),
        (gguf_serve.server.requests.embeddings, "shaped", "/v1/embeddings", {"input": "x"}),
        (gguf_serve.server.requests.service, "read_object", "/tokenize", {"content": "x" * 2**20}),
        ("engine", "submit", "/completion", {"prompt": [104], "n_predict": 1, "dry_multiplier": 1}),
        ("engine", "submit", "/completion", {"prompt": [104], "n_predict": 1, "grammar": "x"}),
        (
            gguf_serve.server.http.reply,
            "json_response",
            "/completion",
            {"prompt": "x", "n_predict": 1},
        ),
    ],
)
def test_a_stream_goes_on(
    serve: Any,
    engine: Any,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
    name: str,
    path: str,
    body: dict[str, Any],
) -> None:
    url, gate = serve(engine), Gate()
    with (
        ThreadPoolExecutor(1) as slow,
        httpx.stream("POST", f"{url}/completion", json={"prompt": "x", "stream": True}) as stream,
    ):
        lines = stream.iter_lines()
        next(lines)
        owner = {"tokenizer": engine.tokenizer, "engine": engine}.get(place, place)
        monkeypatch.setattr(owner, name, gate.behind(getattr(owner, name)))
        answer = slow.submit(httpx.post, url + path, json=body, timeout=20)
        assert gate.reached.wait(20)
        until = time.monotonic() + 0.1  # longer than what has been sent by now lasts
        while time.monotonic() < until:
            next(lines)
        gate.opened.set()
        assert answer.result().status_code in (200, 400)
    assert gate.passed
