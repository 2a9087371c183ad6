"""Qwen3-TTS against llama.cpp: codes, their sound, and a text spoken by the engine."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace
from speech_models import projector, talker
from vision_data import nmse

from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.engine import Engine, load_engine
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Event, Failed, Finished, Request, Sound
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.speech.code2wav import Code2Wav
from gguf_serve.engine.speech.predictor import CodePredictor, chooser, read_tower
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

REFERENCE = Path(__file__).parents[2] / "data" / "speech" / "qwen3tts.npz"
LIMIT = 1e-5  # NMSE; llama.cpp convolves halves
EVERY = 161  # of the reference's samples are there
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    pytest.importorskip("gguf", reason="the gguf package writes the models")
    from random_model import build

    folder = tmp_path_factory.mktemp("speech")
    return (
        build(talker(), folder / "talker.gguf"), build(projector(), folder / "projector.gguf"),
    )  # fmt: skip


@pytest.fixture(scope="module")
def reference() -> dict[str, Any]:
    with np.load(REFERENCE) as arrays:
        return dict(arrays)


def test_codes_of_frames(
    device: Device, programs: Programs, files: tuple[Path, Path], reference: dict[str, Any]
) -> None:
    with open_gguf(files[1]) as gguf:
        weights = EncoderWeights(gguf, device, programs)
        predictor = CodePredictor(read_tower(gguf, weights), weights, device, programs)
    choose = chooser(np.random.default_rng(0), temperature=0.0, top_k=1)
    for i, (state, first) in enumerate(zip(reference["states"], reference["firsts"], strict=True)):
        codes, embedding = predictor.predict(state, int(first), choose)
        assert codes.tolist() == reference["codes"][i].tolist()
        assert nmse(embedding, reference["embeddings"][i]) < LIMIT


def test_sound_of_codes(
    device: Device, programs: Programs, files: tuple[Path, Path], reference: dict[str, Any]
) -> None:
    with open_gguf(files[1]) as gguf:
        weights = EncoderWeights(gguf, device, programs)
        vocoder = Code2Wav(weights, device, programs, like_llama_cpp=True)
        found = vocoder.sound(list(reference["frames"]), 0)
    assert vocoder.frame == 1920
    assert nmse(found[::EVERY], reference["samples"]) < LIMIT


def test_sound_in_parts_is_that_of_the_whole(files: tuple[Path, Path], reference: Any) -> None:
    """With as many frames before as it reaches."""
    from gguf_serve.kernels.opencl.device import open_device

    device = open_device(None)
    programs, frames = Programs(device), list(reference["frames"])
    with open_gguf(files[1]) as gguf:
        vocoder = Code2Wav(EncoderWeights(gguf, device, programs), device, programs)
        whole = vocoder.sound(frames, 0)
        begin, part = vocoder.sound(frames[:20], 0), vocoder.sound(frames[:25], 20)
    assert nmse(np.concatenate([begin, part]), whole[: 25 * vocoder.frame]) < 1e-9
    # 8 layers that see 71 frames before each, a convolution of 3, and what comes after
    assert vocoder.reach == 8 * 71 + 2 + 10


@pytest.fixture(scope="module")
def engine(files: tuple[Path, Path]) -> Iterator[Engine]:
    engine = load_engine(files[0], EngineOptions(mmproj=files[1], n_ctx=512, cache_type_k="f32",
                                                 cache_type_v="f32"))  # fmt: skip
    yield engine
    engine.close()


def spoken(engine: Engine, request: Request) -> tuple[np.ndarray, Finished | Failed]:
    events: Queue[Event] = Queue()
    engine.submit(request, events.put)
    pcm = b""
    while True:
        event = events.get(timeout=120)
        if isinstance(event, Sound):
            pcm += event.pcm
        if isinstance(event, Finished | Failed):
            return np.frombuffer(pcm, "<i2").astype(np.float32) / 32767, event


def greedy(engine: Engine, text: str, **more: Any) -> Request:
    assert engine.speech is not None
    (request,) = engine.speech.requests(text, **more)
    return replace(request, sampling=GREEDY, max_tokens=6)


def test_a_text_is_spoken_as_llama_cpp_does(engine: Engine, reference: dict[str, Any]) -> None:
    samples, end = spoken(engine, greedy(engine, str(reference["text"])))
    assert isinstance(end, Finished)
    assert (end.reason, end.timings.predicted_n) == ("limit", 6)
    assert nmse(samples[::EVERY], reference["spoken"]) < 1e-3  # GELU is llama.cpp's by tanh


def test_requests_beside_each_other_say_the_same(engine: Engine) -> None:
    texts = ("One.", "And another one.", "One.")
    alone = [spoken(engine, greedy(engine, text))[0] for text in texts]
    queues: list[Queue[Event]] = [Queue() for _ in texts]
    for text, queue in zip(texts, queues, strict=True):
        engine.submit(greedy(engine, text), queue.put)
    for expected, queue in zip(alone, queues, strict=True):
        pcm = b""
        while not isinstance(event := queue.get(timeout=120), Finished):
            pcm += event.pcm if isinstance(event, Sound) else b""
        np.testing.assert_array_equal(
            np.frombuffer(pcm, "<i2").astype(np.float32) / 32767, expected
        )
    assert not np.array_equal(alone[0], alone[1])


def test_seeds_and_temperature(engine: Engine) -> None:
    def sampled(seed: int) -> np.ndarray:
        request = greedy(engine, "Hello")
        sampling = dataclasses.replace(request.sampling, temperature=0.9, seed=seed)
        return spoken(engine, replace(request, sampling=sampling))[0]

    np.testing.assert_array_equal(sampled(1), sampled(1))
    assert not np.array_equal(sampled(1), sampled(2))


def test_a_speech_without_an_end_is_cut(engine: Engine) -> None:
    assert engine.speech is not None
    (short,), (long,) = (engine.speech.requests(text) for text in ("Hi", "Hi there. " * 10))
    assert (short.max_tokens, long.max_tokens) == (512, 25 * len("Hi there. " * 10) - 25)


def test_languages(engine: Engine) -> None:
    assert engine.speech is not None
    assert engine.speech.languages == ("chinese", "english", "auto")
    by_code, by_name = (greedy(engine, "Hi", language=name).prompt for name in ("en", "English"))
    assert by_code == by_name == greedy(engine, "Hi").prompt
    assert by_code != greedy(engine, "Hi", language="zh").prompt
    assert len(greedy(engine, "Hi", language="auto").prompt) == len(by_code) - 1
    with pytest.raises(RequestError, match=r"language 'klingon' is not known.*english, auto"):
        engine.speech.requests("Hi", language="klingon")
    with pytest.raises(RequestError, match="no text"):
        engine.speech.requests(" \n")


def test_a_voice_changes_what_is_heard(engine: Engine, wav: Callable[[int], bytes]) -> None:
    plain = greedy(engine, "Hi")
    first, second = (greedy(engine, "Hi", voice=wav(hertz)) for hertz in (220, 330))
    assert len(first.prompt) == len(plain.prompt) + 1
    heard = [spoken(engine, request)[0] for request in (plain, first, second)]
    assert not np.array_equal(heard[0], heard[1])
    assert not np.array_equal(heard[1], heard[2])


@pytest.fixture
def wav() -> Callable[[int], bytes]:
    """A second of a tone."""
    import io

    import soundfile

    def make(hertz: int) -> bytes:
        file = io.BytesIO()
        tone = 0.3 * np.sin(2 * np.pi * hertz * np.arange(24000) / 24000)
        soundfile.write(file, tone, 24000, format="WAV")
        return file.getvalue()

    return make
