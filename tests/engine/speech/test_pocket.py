"""Pocket TTS: points, ends and samples against llama.cpp's, in pieces as in the whole."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import random_model
import soundfile
from asking import Reply
from conformance_data import read_spec
from msgspec.structs import replace
from vision_data import nmse

from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.engine import Engine, load_engine
from gguf_serve.engine.errors import ModelError, naming
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Request, Sound, Speaking
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.speech.pocket import END, Flow, PocketSpeaker, PocketUtterance, Variant
from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.program import Programs

Floats = npt.NDArray[np.float32]
Build = Callable[[str], Path]
DATA = Path(__file__).parents[2] / "data" / "speech"
LIMIT = 1e-5  # NMSE; llama.cpp convolves halves
N_LATENT, WIDTH = 32, 64


@pytest.fixture(scope="module")
def reference() -> Any:
    with np.load(DATA / "pockettts.npz") as arrays:
        return dict(arrays)


@contextmanager
def opened(
    build: Build, device: Device, programs: Programs, *, like_llama_cpp: bool = True
) -> Iterator[PocketSpeaker]:
    with open_gguf(build(str(DATA / "pockettts.json"))) as gguf:
        weights = EncoderWeights(gguf, device, programs)
        yield PocketSpeaker(gguf, weights, device, programs, like_llama_cpp=like_llama_cpp)


@pytest.fixture(scope="module")
def exact(conformance_model: Build) -> Iterator[PocketSpeaker]:
    """One whose products have no integers, of which a float's last bit may choose another."""
    device = open_device(None, family="simt")
    with opened(conformance_model, device, Programs(device)) as made:
        yield made


def check_points(build: Build, device: Device, programs: Programs, reference: Any) -> None:
    with open_gguf(build(str(DATA / "pockettts.json"))) as gguf:
        flow = Flow(EncoderWeights(gguf, device, programs), device, programs)
        given = zip(reference["states"], reference["noise"], strict=True)
        points, embeddings, scores = zip(*(flow.step(*each) for each in given), strict=True)
    assert nmse(np.array(points), reference["points"]) < 1e-11
    assert nmse(np.array(embeddings), reference["embeddings"]) < 1e-11
    ends = [score > END for score in scores]
    assert ends == reference["ends"].tolist()
    assert len(set(ends)) == 2


def check_sound(speaker: PocketSpeaker, reference: Any, n_frames: int) -> None:
    found = speaker.sound(list(reference["latents"][:n_frames]), 0)
    assert len(found) == n_frames * speaker.frame
    some = found[:: reference["every"]]
    assert nmse(some, reference["samples"][: len(some)]) < LIMIT


def test_points_and_ends(conformance_model: Build, reference: Any) -> None:
    device = open_device(None)
    check_points(conformance_model, device, Programs(device), reference)


@pytest.mark.slow
def test_points_and_sound_on_every_device_in_both_families(
    device: Device, programs: Programs, conformance_model: Build, reference: Any
) -> None:
    check_points(conformance_model, device, programs, reference)
    with opened(conformance_model, device, programs) as speaker:
        check_sound(speaker, reference, 6)


def test_sound_in_pieces(exact: PocketSpeaker, reference: Any) -> None:
    """As llama.cpp makes it, and as it is made at once, though frames more than ``reach`` before
    are forgotten; one fewer, and it is another."""
    check_sound(exact, reference, 45)
    latents = list(reference["latents"])
    whole, reach = exact.sound(latents, 0), exact.reach
    at = 0
    for n in (4, 8, 26, 7):
        begin = max(at - reach, 0)
        piece = exact.sound(latents[begin : at + n], at - begin)
        assert nmse(piece, whole[at * exact.frame : (at + n) * exact.frame]) < 1e-11
        at += n
    assert at == len(latents) > reach + 7
    cut = exact.sound(latents[38 - reach + 1 :], reach - 1)
    assert nmse(cut, whole[38 * exact.frame :]) > 1e-10


def test_the_published_gelu_is_the_exact_one(conformance_model: Build, reference: Any) -> None:
    device = open_device(None)
    programs, found = Programs(device), list[Floats]()
    for like_llama_cpp in (False, True):
        with opened(conformance_model, device, programs, like_llama_cpp=like_llama_cpp) as speaker:
            found.append(speaker.sound(list(reference["latents"][:3]), 0))
    assert 1e-10 < nmse(*found) < 1e-4


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("a.gen.flow.final.proj.weight", [64, 48], "proj.bias has 32 values for 48 rows"),
        ("a.gen.flow.blk.1.norm.weight", [48], "a norm of 48 weights for rows of 64"),
        ("a.gen.wav.tfm.blk.1.attn_k.weight", [64, 32], "attn_k.weight has 32 rows, expected 64"),
        ("a.gen.wav.tfm.blk.0.ls2.weight", [32], r"rows of \[32, 64\] values are added"),
        ("a.gen.wav.seanet.blk.2.scale_conv.bias", [4], "scale_conv.bias has 4 values for 8 rows"),
        ("a.gen.wav.upsample.weight", [32, 1, 48], "array of size 1536"),
    ],
)
def test_tensors_that_do_not_fit(tmp_path: Path, name: str, shape: list[int], message: str) -> None:
    spec = read_spec(str(DATA / "pockettts.json"))
    spec["tensors"] = [[n, shape if n == name else s, kind] for n, s, kind in spec["tensors"]]
    path, device = random_model.build(spec, tmp_path / "other.gguf"), open_device(None)

    def begin() -> None:
        with naming(path), open_gguf(path) as gguf:
            programs = Programs(device)
            speaker = PocketSpeaker(gguf, EncoderWeights(gguf, device, programs), device, programs)
            speaker.warm_up()

    with pytest.raises(ModelError, match=message):
        begin()


def test_what_a_speaker_says_of_itself(exact: PocketSpeaker) -> None:
    wanted = {"rate": 24000, "frame": 1920, "reach": 33, "width": WIDTH, "mask": None}
    assert {name: getattr(exact, name) for name in wanted} == wanted


# --- in the engine ---


def wav(samples: npt.NDArray[np.int8]) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples / 128, 24000, format="WAV", subtype="PCM_16")
    return file.getvalue()


@pytest.fixture(scope="module")
def engine(conformance_model: Build) -> Iterator[Engine]:
    text, projector = (
        conformance_model(str(DATA / f"{name}.json")) for name in ("pockettts-text", "pockettts")
    )
    options = EngineOptions(mmproj=projector, n_ctx=512, cache_type_k="f32", cache_type_v="f32")
    made = load_engine(text, options)
    yield made
    made.close()


def spoken(engine: Engine, request: Request) -> tuple[Floats, Reply]:
    engine.submit(request, reply := Reply())
    assert reply.wait().end.reason == "eos"
    pcm = b"".join(event.pcm for event in reply.all(Sound))
    return np.frombuffer(pcm, "<i2").astype(np.float32) / 32767, reply


def test_a_text_is_spoken_as_llama_cpp_does(
    engine: Engine, reference: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In two parts, with the same noise; the voice is read once, with the token before it and the
    space that both parts begin with."""
    noise = iter(reference["said_noise"])
    monkeypatch.setattr(PocketUtterance, "noise", lambda self: next(noise))
    assert engine.speech is not None
    first, second = engine.speech.requests(str(reference["text"]), voice=wav(reference["voice"]))
    samples, begin = spoken(engine, first)
    more, end = spoken(engine, second)
    found = np.concatenate([samples, more])[:: reference["every"]]
    assert nmse(found, reference["said"]) < LIMIT
    assert next(noise, None) is None
    assert begin.n_cached in (0, end.n_cached)  # another test's
    assert end.n_cached == 1 + 3 + 1


def test_a_seed_makes_the_same_speech(engine: Engine, reference: Any) -> None:
    assert engine.speech is not None
    (request,) = engine.speech.requests("A voice.", voice=wav(reference["voice"]))
    requests = [
        replace(request, sampling=dataclasses.replace(request.sampling, seed=seed))
        for seed in (1, 1, 2)
    ]
    first, again, other = (spoken(engine, each)[0] for each in requests)
    np.testing.assert_array_equal(first, again)
    n = min(len(first), len(other))
    assert nmse(other[:n], first[:n]) > 1e-3


def test_a_projector_for_another_model(conformance_model: Build) -> None:
    """The voice's rows are as wide as the model's, those that its states should be are not."""
    spec = read_spec(str(DATA / "pockettts.json"))
    wide = {"a.gen.input_linear.weight": [32, 96], "a.gen.flow.cond_embd.weight": [96, 64],
            "a.gen.out_eos.weight": [96, 1]}  # fmt: skip
    spec["tensors"] = [[name, wide.get(name, shape), kind] for name, shape, kind in spec["tensors"]]
    text = conformance_model(str(DATA / "pockettts-text.json"))
    path = random_model.build(spec, text.with_name("wide.gguf"))
    with pytest.raises(ModelError, match=r"wide.gguf: .* states of 96 values, .* have 64"):
        load_engine(text, EngineOptions(mmproj=path, n_ctx=512))


# --- the end, and noise ---


class ScriptedFlow:
    """Ends at the step of this number; what it is given is kept."""

    n_latent = N_LATENT

    def __init__(self, end: int) -> None:
        self._end, self.noise = end, list[Floats]()

    def step(self, state: Floats, noise: Floats) -> tuple[Floats, Floats, float]:
        self.noise.append(noise)
        return noise, state, END + (1 if len(self.noise) > self._end else -1)


def said(flow: Any, variant: Variant, n_text: int, **sampling: Any) -> int:
    """How many frames a text of so many tokens has."""
    params = SamplingParams(**sampling)
    request = Request((1,), params, wants=Speaking(n_text))
    utterance = PocketUtterance(flow, variant, request)
    state = np.zeros(WIDTH, np.float32)
    return next(n for n in range(1000) if utterance.next(state, -1) is None)


@pytest.mark.parametrize(
    ("n_text", "end", "variant", "expected"),
    [
        (6, 10, Variant(), 15), (7, 10, Variant(), 13), (7, 10, Variant(n_after=8), 18),
        (7, 0, Variant(), 3), (7, 53, Variant(), 55), (7, 500, Variant(), 55),
    ],
)  # fmt: skip
def test_a_few_frames_follow_the_end(
    n_text: int, end: int, variant: Variant, expected: int
) -> None:
    """At most as many as seven tokens may take: 7 / 3 + 2 seconds of 12.5 frames."""
    assert said(ScriptedFlow(end), variant, n_text) == expected


def test_noise_is_that_of_the_seed_and_the_temperature() -> None:
    flows = [ScriptedFlow(100) for _ in range(4)]
    how = ((5, 0.3), (5, 0.3), (6, 0.3), (5, 0.0))
    for flow, (seed, temperature) in zip(flows, how, strict=True):
        said(flow, Variant(), 100, seed=seed, temperature=temperature)
    first, again, other, still = (np.array(flow.noise) for flow in flows)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 0.1
    assert abs(first.std() - 0.3**0.5) < 0.02
    assert not still.any()
