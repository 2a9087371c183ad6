"""Damaged images and sounds through HTTP: an answer or a refusal in the dialect's shape."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from gguf_serve.engine.encoders.audio_file import AudioFile
from gguf_serve.engine.encoders.reader import MediaReader
from gguf_serve.engine.encoders.vision_file import VisionFile
from gguf_serve.engine.media.piece import ImageLimits

Serve = Callable[..., str]
PIXELS = np.random.default_rng(1).integers(0, 256, (24, 40, 3), np.uint8)
AUDIO = AudioFile("qwen3a", 40, 2, 2, 1e-5, 128, 1)
QWEN = ImageLimits(56, 14, 2, 4 * 784, 64 * 784)
INTERN = ImageLimits(56, 14, 2)
HEADER = 64  # bytes, which damage hits more often
TEXT = {"type": "text", "text": "?"}


def image(format: str) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(PIXELS).save(stream, format)
    return stream.getvalue()


def sound(format: str) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.sin(np.arange(4000)) / 2, 22050, format=format)
    return stream.getvalue()


IMAGES = [image(format) for format in ("PNG", "JPEG", "WEBP", "GIF", "BMP")]
SOUNDS = [sound(format) for format in ("WAV", "FLAC", "OGG", "MP3")]


@st.composite
def damaged(draw: st.DrawFn, files: list[bytes]) -> bytes:
    data = bytearray(draw(st.sampled_from(files)))
    places = st.integers(0, HEADER) | st.integers(0, len(data) - 1)
    for _ in range(draw(st.integers(0, 6))):
        data[draw(places)] = draw(st.integers(0, 255))
    cut = draw(st.none() | st.integers(0, len(data)))
    return bytes(data[:cut])


def vision(kind: str, limits: ImageLimits) -> VisionFile:
    return VisionFile(kind, 64, 2, 4, 1e-6, "gelu", 2, (0.5,) * 3, (0.5,) * 3, limits)


@pytest.fixture(params=["qwen2vl_merger", "internvl"])
def engine(fakes: Any, request: pytest.FixtureRequest) -> Any:
    limits = QWEN if request.param == "qwen2vl_merger" else INTERN
    engine = fakes.engine(fakes.say("ok"), n_ctx=4000)
    engine.media = MediaReader(vision(request.param, limits), AUDIO, n_embd=64)
    return engine


def openai(client: httpx.Client, data: bytes) -> httpx.Response:
    url = {"url": f"data:image/png;base64,{base64.b64encode(data).decode()}"}
    parts = [TEXT, {"type": "image_url", "image_url": url}]
    return client.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]}
    )


def responses(client: httpx.Client, data: bytes) -> httpx.Response:
    url = f"data:image/png;base64,{base64.b64encode(data).decode()}"
    parts = [{"type": "input_image", "image_url": url}]
    return client.post("/v1/responses", json={"input": [{"role": "user", "content": parts}]})


def anthropic(client: httpx.Client, data: bytes) -> httpx.Response:
    encoded = base64.b64encode(data).decode()
    source = {"type": "base64", "media_type": "image/png", "data": encoded}
    message = {"role": "user", "content": [TEXT, {"type": "image", "source": source}]}
    return client.post("/v1/messages", json={"max_tokens": 9, "messages": [message]})


def ollama(client: httpx.Client, data: bytes) -> httpx.Response:
    message = {"role": "user", "content": "?", "images": [base64.b64encode(data).decode()]}
    return client.post("/api/chat", json={"messages": [message], "stream": False})


def input_audio(client: httpx.Client, data: bytes) -> httpx.Response:
    audio = {"data": base64.b64encode(data).decode(), "format": "wav"}
    parts = [TEXT, {"type": "input_audio", "input_audio": audio}]
    return client.post(
        "/v1/chat/completions", json={"messages": [{"role": "user", "content": parts}]}
    )


def transcription(client: httpx.Client, data: bytes) -> httpx.Response:
    return client.post("/v1/audio/transcriptions", files={"file": ("a.wav", data)})


def check(response: httpx.Response) -> None:
    body = response.json()
    if response.status_code == 200:
        return
    assert response.status_code == 400, response.text
    if response.url.path.startswith("/api/"):
        assert set(body) == {"error"}
        message = body["error"]
    else:
        error = body["error"]
        message = error["message"]
        assert error["type"] in ("invalid_request_error", "exceed_context_size_error")
        assert (body.get("type") == "error") == (response.url.path == "/v1/messages")
    assert message.startswith(("Field '", "request ("))


@pytest.mark.parametrize("ask", [openai, responses, anthropic, ollama])
def test_images(serve: Serve, engine: Any, ask: Callable[..., httpx.Response]) -> None:
    with httpx.Client(base_url=serve(engine), timeout=60) as client:

        @settings(max_examples=50, deadline=None)
        @given(damaged(IMAGES))
        def one(data: bytes) -> None:
            check(ask(client, data))

        one()
        assert ask(client, IMAGES[0]).status_code == 200


@pytest.mark.parametrize("ask", [input_audio, transcription])
def test_sounds(serve: Serve, engine: Any, ask: Callable[..., httpx.Response]) -> None:
    with httpx.Client(base_url=serve(engine), timeout=60) as client:

        @settings(max_examples=50, deadline=None)
        @given(damaged(SOUNDS))
        def one(data: bytes) -> None:
            check(ask(client, data))

        one()
        assert ask(client, SOUNDS[0]).status_code == 200


def test_more_images_than_the_context_has_room_for(serve: Serve, engine: Any) -> None:
    """They are refused with the usual error as soon as that is known."""
    engine.n_ctx = 20
    decoded = []
    reader = engine.media

    class Counting:
        vision = audio = True
        prompt = reader.prompt

        def image(self, data: bytes) -> Any:
            decoded.append(len(data))
            return reader.image(data)

    engine.media = Counting()
    url = {"url": f"data:image/png;base64,{base64.b64encode(image('PNG')).decode()}"}
    parts = [{"type": "image_url", "image_url": url}] * 100
    body = {"messages": [{"role": "user", "content": parts}]}
    error = httpx.post(f"{serve(engine)}/v1/chat/completions", json=body).json()["error"]
    assert error["type"] == "exceed_context_size_error"
    assert error["n_ctx"] == 20
    assert error["n_prompt_tokens"] >= 20
    assert len(decoded) < 10
