"""Prompts that are objects, in completions and embeddings."""

from __future__ import annotations

import base64
from typing import Any

import httpx
import pytest
from images_and_sounds import AUDIO, N_TOKENS, VISION, data_url, png, wav

from gguf_serve.engine.encoders.reader import MediaReader

IMAGE = base64.b64encode(png()).decode()


@pytest.fixture
def engine(fakes: Any) -> Any:
    engine = fakes.engine(fakes.say("A red square."))
    engine.media = MediaReader(VISION, AUDIO, n_embd=64)
    return engine


@pytest.fixture
def url(serve: Any, engine: Any) -> str:
    return serve(engine)


@pytest.mark.parametrize("path", ["/completion", "/completions", "/v1/completions"])
def test_a_text_with_an_image_and_a_sound(url: str, engine: Any, path: str) -> None:
    prompt = {"prompt_string": "a<__media__>b<__media__>", "multimodal_data": [IMAGE, wav()]}
    answer = httpx.post(url + path, json={"prompt": prompt}, timeout=20)
    assert answer.status_code == 200, answer.text
    (request,) = engine.requests
    image, sound = request.media
    assert (image.start, image.count) == (2 + len("<|vision_start|>"), N_TOKENS)
    assert image.end < sound.start
    assert sum(id < 0 for id in request.prompt) == N_TOKENS + sound.count
    if path == "/completion":
        assert answer.json()["prompt"] == prompt["prompt_string"]


def test_among_other_prompts(url: str, engine: Any) -> None:
    with_image = {"prompt_string": "<__media__>", "multimodal_data": [IMAGE]}
    plain = {"prompt_string": "a<__media__>", "multimodal_data": []}
    answer = httpx.post(url + "/completion", json={"prompt": ["ab", with_image, [5], plain]})
    assert len(answer.json()) == 4
    prompts = {request.prompt for request in engine.requests}
    assert {(256, 97, 98), (5,), (256, *b"a<__media__>")} < prompts


def test_parts(url: str, engine: Any) -> None:
    engine.media = None
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    for given in ({"content": parts}, [{"content": "ab"}]):
        httpx.post(url + "/completion", json={"prompt": given})
        assert engine.requests[-1].prompt == (256, 97, 98)


def test_embeddings_of_images_are_the_engines_to_refuse(url: str, engine: Any) -> None:
    """It is told of them, and not given their places as if they were tokens."""
    part = {"type": "image_url", "image_url": {"url": data_url(png())}}
    for body in ({"input": {"content": [part]}}, {"content": [part], "input": None}):
        given = body["input"] or {"content": body["content"]}
        httpx.post(url + "/v1/embeddings", json={"input": given})
        assert len(engine.requests[-1].media) == 1


@pytest.mark.parametrize(
    ("prompt", "field"),
    [
        ({}, "'prompt.content'"),
        ({"prompt_string": 5}, "'prompt.prompt_string'"),
        ({"prompt_string": "a", "multimodal_data": "x"}, "'prompt.multimodal_data'"),
        ({"prompt_string": "a", "multimodal_data": [IMAGE]}, "expected <__media__> for each"),
        (["x", {"prompt_string": "<__media__>", "multimodal_data": ["%"]}],
         "'prompt[1].multimodal_data[0]'"),
        ({"content": [{"type": "text"}]}, "'prompt.content[0].text'"),
        ({"content": []}, "no tokens"),
    ],
)  # fmt: skip
def test_refusals_name_the_field(url: str, engine: Any, prompt: Any, field: str) -> None:
    engine.tokenizer.encode = lambda text, **_: list(text.encode())
    response = httpx.post(url + "/completion", json={"prompt": prompt})
    assert response.status_code == 400
    assert field in response.json()["error"]["message"]


def test_without_a_projector(url: str, engine: Any) -> None:
    engine.media = None
    prompt = {"prompt_string": "<__media__>", "multimodal_data": [IMAGE]}
    response = httpx.post(url + "/completion", json={"prompt": prompt})
    assert response.status_code == 400
    assert "image input is not supported" in response.json()["error"]["message"]


def test_echo_has_no_images(url: str) -> None:
    prompt = {"prompt_string": "<__media__>", "multimodal_data": [IMAGE]}
    response = httpx.post(url + "/v1/completions", json={"prompt": prompt, "echo": True})
    assert response.status_code == 400
    assert "'echo'" in response.json()["error"]["message"]
