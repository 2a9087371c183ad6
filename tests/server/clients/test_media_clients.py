"""Real clients send images and sounds, to a scripted engine and to small models of all parts."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import numpy as np
import ollama
import openai
import pytest
from PIL import Image

from gguf_serve.engine.encoders.reader import MediaReader
from gguf_serve.engine.encoders.vision_file import VisionFile
from gguf_serve.engine.engine import Engine, load_engine
from gguf_serve.engine.media.piece import ImageLimits
from gguf_serve.engine.options import EngineOptions

Client = Callable[[str], openai.OpenAI]
VISION = VisionFile(
    "internvl", 64, 2, 4, 1e-6, "gelu", 2, (0.5,) * 3, (0.5,) * 3, ImageLimits(56, 14, 2)
)


def png(seed: int = 1) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (56, 56, 3), np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def base64_of(data: bytes) -> str:
    return base64.b64encode(data).decode()


def url_of(data: bytes) -> str:
    return f"data:image/png;base64,{base64_of(data)}"


def parts(data: bytes, text: str = "What is it?") -> list[dict[str, Any]]:
    image = {"type": "image_url", "image_url": {"url": url_of(data), "detail": "high"}}
    return [{"role": "user", "content": [image, {"type": "text", "text": text}]}]


def ask_openai(url: str, data: bytes) -> str:
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        answer = client.chat.completions.create(
            model="m", messages=parts(data), temperature=0, max_tokens=8
        )
        return answer.choices[0].message.content


def ask_responses(url: str, data: bytes) -> str:
    image = {"type": "input_image", "image_url": url_of(data), "detail": "auto"}
    content = [image, {"type": "input_text", "text": "What is it?"}]
    with openai.OpenAI(base_url=f"{url}/v1", api_key="k", max_retries=0) as client:
        answer = client.responses.create(
            model="m", temperature=0, max_output_tokens=8,
            input=[{"role": "user", "content": content}],
        )  # fmt: skip
        return answer.output_text


def ask_anthropic(url: str, data: bytes) -> str:
    source = {"type": "base64", "media_type": "image/png", "data": base64_of(data)}
    content = [{"type": "image", "source": source}, {"type": "text", "text": "What is it?"}]
    with anthropic.Anthropic(base_url=url, api_key="k", max_retries=0) as client:
        answer = client.messages.create(
            model="m", max_tokens=8, extra_body={"temperature": 0},
            messages=[{"role": "user", "content": content}],
        )  # fmt: skip
        return "".join(block.text for block in answer.content)


def ask_ollama(url: str, data: bytes) -> str:
    client = ollama.Client(host=url)
    message = {"role": "user", "content": "What is it?", "images": [data]}  # bytes: it encodes them
    options = {"temperature": 0, "num_predict": 8}
    try:
        return client.chat("m", messages=[message], options=options).message.content
    finally:
        client._client.close()


ASK = [ask_openai, ask_responses, ask_anthropic, ask_ollama]


@pytest.mark.parametrize("ask", ASK)
def test_an_image_reaches_the_engine(serve: Any, fakes: Any, ask: Any) -> None:
    engine = fakes.engine(fakes.say("A cat."))
    engine.media = MediaReader(VISION, None, n_embd=64)
    assert ask(serve(engine), png()) == "A cat."
    (span,) = engine.requests[0].media
    assert span.count == 4
    expected = np.asarray(Image.open(io.BytesIO(png())))
    assert np.array_equal(span.input, expected)


@pytest.mark.parametrize("ask", ASK)
def test_clients_understand_the_refusal(serve: Any, fakes: Any, ask: Any) -> None:
    errors = (openai.BadRequestError, anthropic.BadRequestError, ollama.ResponseError)
    with pytest.raises(errors, match="you may need to provide the mmproj"):
        ask(serve(fakes.engine()), png())


Load = Callable[[str], Engine]


@pytest.fixture
def load(conformance_model: Callable[[str], Path], shared: Path) -> Iterator[Load]:
    """Starts an engine with the text model and the projector of ../shared's of that name."""
    specs = shared / "conformance" / "vision" / "specs"
    if not specs.is_dir():
        pytest.skip("there is no conformance/vision in ../shared")
    engines: list[Engine] = []

    def start(name: str) -> Engine:
        options = EngineOptions(mmproj=conformance_model(f"{specs / name}.json"), n_ctx=2048)
        engines.append(load_engine(conformance_model(f"{specs / name}-text.json"), options))
        return engines[-1]

    yield start
    for engine in engines:
        assert engine.healthy
        engine.close()


@pytest.mark.parametrize("name", ["llava15", "gemma3", "qwen2vl"])
def test_a_model_sees(serve: Any, load: Load, client: Client, name: str) -> None:
    url = serve(load(name))
    create = client(url).chat.completions.create

    def look(data: bytes, text: str) -> Any:
        return create(
            model="m", messages=parts(data, text), temperature=0, max_tokens=4, logprobs=True,
            top_logprobs=5,
        )  # fmt: skip

    def likeliest(answer: Any) -> list[float]:
        return [top.logprob for top in answer.choices[0].logprobs.content[0].top_logprobs]

    first, other = look(png(1), "What?"), look(png(2), "What?")
    assert likeliest(first) != likeliest(other)
    again = look(png(1), "What?")
    assert likeliest(again) == pytest.approx(likeliest(first), abs=1e-3)
    assert len({ask(url, png(1)) for ask in ASK}) == 1
    if name == "llava15":  # the others' windows and positions are not shared within an image
        n_cached = look(png(1), "Another question?").usage.prompt_tokens_details.cached_tokens
        assert n_cached > 64


@pytest.mark.parametrize("name", ["qwen3a", "ultravox"])
def test_a_model_hears(serve: Any, load: Load, client: Client, shared: Path, name: str) -> None:
    sound = shared / "conformance" / "vision" / "images" / "sound.wav"
    url = serve(load(name))
    create = client(url).audio.transcriptions.create
    with sound.open("rb") as file:
        answer = create(model="m", file=file, language="en", extra_body={"max_tokens": 4})
    assert answer.usage.input_token_details.audio_tokens > 10
    assert answer.usage.output_tokens == 4
    props = httpx.get(f"{url}/props").json()
    assert props["modalities"] == {"vision": False, "video": False, "audio": True}
