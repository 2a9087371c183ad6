"""OpenAI's transcriptions with its own client, and what is refused."""

from __future__ import annotations

import base64
import io
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import soundfile

from gguf_serve.engine.encoders.audio_file import AudioFile
from gguf_serve.engine.encoders.reader import MediaReader
from gguf_serve.engine.encoders.vision_file import VisionFile
from gguf_serve.engine.media.piece import ImageLimits
from gguf_serve.server.requests import unknown

Serve = Callable[..., str]
Client = Callable[[str], openai.OpenAI]
AUDIO = AudioFile("qwen3a", 40, 2, 2, 1e-5, 128, 1)
VISION = VisionFile(
    "mlp", 64, 2, 4, 1e-6, "gelu", 1, (0.5,) * 3, (0.5,) * 3, ImageLimits(56, 14)
)  # fmt: skip
N_TOKENS = 26  # of a second: two chunks of 100 frames
PATH = "/v1/audio/transcriptions"


def wav(seconds: float = 1.0) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, [0.1, -0.1] * int(8000 * seconds), 16000, format="WAV")
    return stream.getvalue()


@pytest.fixture
def engine(fakes: Any) -> Any:
    engine = fakes.engine(fakes.say(" Hello wörld"))
    engine.media = MediaReader(None, AUDIO, n_embd=64)
    return engine


def refusal(url: str, files: Any, path: str = PATH, **data: str) -> str:
    response = httpx.post(url + path, files=files, data=data, timeout=30)
    assert response.status_code == 400, response.text
    assert response.json()["error"]["type"] == "invalid_request_error"
    return str(response.json()["error"]["message"])


def test_the_client_transcribes(serve: Serve, client: Client, engine: Any) -> None:
    create = client(serve(engine)).audio.transcriptions.create
    answer = create(model="any", file=("a.wav", wav()), language="en", prompt="Names: Ada")
    assert answer.text == "Hello wörld"
    (request,) = engine.requests
    assert [span.count for span in request.media] == [N_TOKENS]
    assert request.sampling.temperature == 0
    said = engine.chat_template.asked()["messages"][0]["content"]
    assert said[0]["text"] == "Transcribe audio to text (language: en)\nNames: Ada"
    assert answer.usage.input_tokens == len(request.prompt)
    assert answer.usage.input_token_details.audio_tokens == N_TOKENS


def test_a_stream(serve: Serve, client: Client, engine: Any) -> None:
    create = client(serve(engine)).audio.transcriptions.create
    with create(model="any", file=("a.wav", wav()), stream=True) as stream:
        events = list(stream)
    deltas = [event.delta for event in events if event.type == "transcript.text.delta"]
    assert "".join(deltas) == " Hello wörld"
    assert len(deltas) > 1
    assert (events[-1].type, events[-1].text) == ("transcript.text.done", "Hello wörld")


def test_formats(serve: Serve, client: Client, engine: Any) -> None:
    create = client(serve(engine)).audio.transcriptions.create
    file = "a.wav", wav(2.5)
    assert create(model="any", file=file, response_format="text") == "Hello wörld\n"
    verbose = create(model="any", file=file, response_format="verbose_json", language="de")
    assert (verbose.text, verbose.language, verbose.duration) == ("Hello wörld", "de", 2.5)
    assert verbose.segments is None


def test_a_sound_in_json(serve: Serve, engine: Any) -> None:
    """As Open WebUI 0.12.4 sends it with its setting ``json``."""
    sound = {"data": base64.b64encode(wav()).decode(), "format": "wav"}
    body = {"model": "any", "language": "en", "input_audio": sound}
    answer = httpx.post(serve(engine) + PATH, json=body)
    assert (answer.status_code, answer.json()["text"]) == (200, "Hello wörld")
    (request,) = engine.requests
    assert [span.count for span in request.media] == [N_TOKENS]
    said = engine.chat_template.asked()["messages"][0]["content"]
    assert said[0]["text"] == "Transcribe audio to text (language: en)"


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({}, "Field 'input_audio' is required"),
        ({"input_audio": "UklGRg=="}, "Field 'input_audio': Expected `object`"),
        ({"input_audio": {"format": "wav"}}, "required field `data`"),
        ({"input_audio": {"data": "no base64!"}}, "Field 'input_audio.data': the base64"),
        ({"input_audio": {"data": ""}}, "Field 'input_audio.data': the sound cannot be decoded"),
        ({"timestamp_granularities": ["word"]}, "Field 'timestamp_granularities'"),
    ],
)
def test_json_that_is_refused(serve: Serve, engine: Any, body: Any, reason: str) -> None:
    answer = httpx.post(serve(engine) + PATH, json=body)
    assert answer.status_code == 400
    assert reason in answer.json()["error"]["message"]
    assert not engine.requests


def test_a_model_without_sounds_fetches_none(serve: Serve, fakes: Any) -> None:
    body = {"input_audio": {"data": "http://127.0.0.1:9/a.wav"}}
    answer = httpx.post(serve(fakes.engine()) + PATH, json=body)
    assert "Field 'input_audio.data': audio input" in answer.json()["error"]["message"]


def test_the_model_of_a_form_names_an_adapter(serve: Serve, engine: Any, tmp_path: Path) -> None:
    adapter = engine.load_adapter(tmp_path / "poems.gguf", "poems")
    url = serve(engine) + PATH
    assert httpx.post(url, files={"file": wav()}, data={"model": "base:poems"}).status_code == 200
    assert engine.requests[0].adapters == ((adapter.id, 1.0),)


def test_a_field_of_a_form_that_nobody_knows(
    serve: Serve, engine: Any, caplog: pytest.LogCaptureFixture
) -> None:
    url = serve(engine) + PATH
    with caplog.at_level(logging.WARNING):
        httpx.post(url, files={"file": wav()}, data={"temprature": "1", "model": "any"})
    told = [each.getMessage() for each in caplog.records if each.name == unknown.__name__]
    assert told == [f"{PATH}: the field 'temprature' is not known here: ignored"]


def test_sampling_fields_are_the_chats(serve: Serve, engine: Any) -> None:
    data = {"temperature": "0.5", "top_k": "7", "max_tokens": "3", "seed": "5"}
    url = serve(engine) + "/audio/transcriptions"
    answer = httpx.post(url, files={"file": wav()}, data=data).json()
    assert answer["text"] == "He"
    sampling = engine.requests[0].sampling
    assert (sampling.temperature, sampling.top_k, sampling.seed) == (0.5, 7, 5)


def test_models_without_sounds(serve: Serve, engine: Any, fakes: Any) -> None:
    assert refusal(serve(fakes.engine()), {"file": wav()}) == (
        "Field 'file': audio input is not supported - hint: if this is unexpected, you may need "
        "to provide the mmproj"
    )
    engine.media = MediaReader(VISION, None, n_embd=64)
    assert "takes no audio" in refusal(serve(engine), {"file": wav()})


@pytest.mark.parametrize(
    ("files", "data", "reason"),
    [
        ({"other": (None, "x")}, {}, "Field 'file' is required"),
        ({"file": (None, "x")}, {}, "Field 'file': expected a file"),
        ({"prompt": ("a.txt", b"x")}, {}, "Field 'prompt': expected a text"),
        ({"file": b"RIFFnonsense"}, {}, "Field 'file': the sound cannot be decoded"),
        ({"file": b""}, {}, "Field 'file': the sound cannot be decoded"),
        ({"file": wav()}, {"response_format": "srt"}, "Field 'response_format': Invalid enum"),
        ({"file": wav()}, {"temperature": "hot"}, "Field 'temperature': "),
        ({"file": wav()}, {"temperature": "nan"}, "Field 'temperature': expected a finite number"),
        ({"file": wav()}, {"timestamp_granularities[]": "word"}, "is not supported"),
        ({"file": wav(), "b": b""}, {}, "Too many files"),
    ],
)
def test_what_is_refused(serve: Serve, engine: Any, files: Any, data: Any, reason: str) -> None:
    assert reason in refusal(serve(engine), files, **data)
    assert not engine.requests


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("application/json", b"{}"),
        ("multipart/form-data", b"x"),
        ("multipart/form-data; boundary=x", b"no form at all"),
        ("multipart/form-data; boundary=x; charset=none", b"--x\r\n\r\nx\r\n--x--"),
        ("multipart/form-data; boundary=x", b"--x\r\nContent-Disposition: form-data\r\n\r\n"),
    ],
)
def test_bodies_that_are_no_forms(serve: Serve, engine: Any, kind: str, body: bytes) -> None:
    url = serve(engine) + PATH
    response = httpx.post(url, content=body, headers={"content-type": kind})
    assert response.status_code == 400, response.text
    assert response.json()["error"]["message"]


def test_a_body_and_a_sound_that_are_too_long(serve: Serve, engine: Any) -> None:
    url = serve(engine, max_body=4096) + PATH
    response = httpx.post(url, files={"file": wav()})
    assert response.status_code == 413
    assert response.json()["error"]["type"] == "payload_too_large_error"
    response = httpx.post(serve(engine) + PATH, files={"file": wav(90)})
    assert response.json()["error"]["type"] == "exceed_context_size_error"
