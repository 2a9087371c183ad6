"""Images and sounds in prompts of text models: tokens, logits, sharing, waiting."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from queue import Queue
from typing import Any

import numpy as np
import pytest
from asking import SECONDS, at_once
from msgspec.structs import replace
from vision_data import IMAGES, SOUNDS, Reference, nmse

from gguf_serve.engine.architecture.table import ARCHITECTURES
from gguf_serve.engine.encoders import encoder as encoder_module
from gguf_serve.engine.encoders.encoder import MediaEncoder
from gguf_serve.engine.encoders.reader import MediaPrompt
from gguf_serve.engine.encoders.vision_file import VisionFile
from gguf_serve.engine.engine import Engine, load_engine
from gguf_serve.engine.errors import MediaError, ModelError, RequestError
from gguf_serve.engine.forward import batch
from gguf_serve.engine.forward.positions import positions
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.loading import media_loader
from gguf_serve.engine.media.span import MediaSpan
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import (
    Delta,
    Embedded,
    Embedding,
    Event,
    Failed,
    Finished,
    Grid,
    Pooling,
    Request,
    Started,
)
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.platforms import list_devices

Build = Callable[[str], Path]
LIMIT = 1e-5  # NMSE of logits
# Gemma 4's attention has no scale, so that an error of the embeddings grows up to 35 times.
GEMMA4_LIMIT = 1e-4
MARKER = "<__media__>"


def text_model(reference: Reference) -> str:
    return str(reference.folder / "specs" / f"{Path(reference.spec).stem}-text.json")


def text_without_number(grids: Sequence[Grid], start: int, count: int) -> np.ndarray:
    """llama.cpp's positions: the fourth number of text is 0. HunyuanVL turns by that, too."""
    result = positions(grids, start, count)
    inside = [(grid.start, grid.end) for grid in grids]
    for i, token in enumerate(range(start, start + count)):
        if not any(first <= token < end for first, end in inside):
            result[i, 3] = 0
    return result


@pytest.fixture
def serve(
    conformance_model: Build, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., Engine]]:
    """Starts an engine with the text model of a reference; class tokens as llama.cpp has them."""
    engines: list[Engine] = []

    class LikeLlamaCpp(encoder_module.MediaEncoder):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args, like_llama_cpp=True)

    monkeypatch.setattr(encoder_module, "MediaEncoder", LikeLlamaCpp)
    n_before = VisionFile.n_before  # llama.cpp counts without the token that begins a text
    monkeypatch.setattr(VisionFile, "n_before", lambda self, start: n_before(self, start - 1))
    monkeypatch.setattr(batch, "grid_positions", text_without_number)
    gemma3n = ARCHITECTURES["gemma3n"]  # llama.cpp divides its deviation by n - 1
    like_llama_cpp = replace(gemma3n, quirks=gemma3n.quirks - {"population_deviation"})
    monkeypatch.setitem(ARCHITECTURES, "gemma3n", like_llama_cpp)

    def start(reference: Reference, n_ctx: int = 4096, **options: Any) -> Engine:
        least, most = reference.token_limits
        given = EngineOptions(
            mmproj=conformance_model(reference.spec), n_ctx=n_ctx, cache_type_k="f32",
            cache_type_v="f32", image_min_tokens=least, image_max_tokens=most, **options,
        )  # fmt: skip
        engine = load_engine(conformance_model(text_model(reference)), given)
        engines.append(engine)
        return engine

    yield start
    for engine in engines:
        engine.close()


def read(reference: Reference, engine: Engine, key: str) -> MediaPrompt:
    assert engine.media is not None
    folder = reference.folder / "images"
    if key in SOUNDS.values():
        medium = engine.media.sound((folder / f"{key}.wav").read_bytes())
    else:
        medium = engine.media.image((folder / f"{key}.png").read_bytes())
    return engine.media.prompt(f"describe {MARKER} now", MARKER, [medium], engine.tokenizer)


def logprobs(engine: Engine, prompt: MediaPrompt, **options: Any) -> tuple[np.ndarray, Finished]:
    """Log-probabilities of the whole vocabulary after the prompt, and the last event."""
    n = engine.info.n_vocab
    events: Queue[Event] = Queue()
    request = Request(
        prompt.ids, SamplingParams(temperature=0), max_tokens=1, n_probs=n, media=prompt.spans,
        **options,
    )  # fmt: skip
    engine.submit(request, events.put)
    found = np.zeros(n)
    while True:
        event = events.get(timeout=SECONDS)
        assert not isinstance(event, Failed), event.message
        if isinstance(event, Finished):
            return found, event
        if isinstance(event, Delta):
            for id, _, logprob in event.scores[0].top:
                found[id] = logprob


def check_logits(found: np.ndarray, expected: np.ndarray, limit: float = LIMIT) -> None:
    """Logits are known up to a constant."""
    error = nmse(found - found.mean(), expected - expected.mean())
    assert error < limit, f"NMSE {error:.1e}"


# CogVLM: see tests/engine/recording/test_image_experts.py.
@pytest.mark.parametrize("name", sorted({*IMAGES, *SOUNDS} - {"cogvlm"}))
def test_tokens_and_logits(vision_folder: Path, serve: Callable[..., Engine], name: str) -> None:
    reference = Reference(vision_folder, name)
    engine = serve(reference)
    for key in reference.media:
        if key == "square.jpg":
            continue
        prompt = read(reference, engine, key)
        expected: list[int] = []
        for chunk in reference.media[key]["chunks"]:
            expected += chunk.get("tokens") or [-1] * chunk["n_tokens"]
        assert [max(token, -1) for token in prompt.ids] == expected
        found, _ = logprobs(engine, prompt)
        limit = GEMMA4_LIMIT if engine.info.architecture == "gemma4" else LIMIT
        check_logits(found, reference.arrays[f"logits.{key}"], limit)


def test_the_encoder_on_another_device(
    vision_folder: Path, serve: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the devices that there are it is the one named, and the text model's results stay."""
    devices = list_devices()
    if len(devices) < 2:
        pytest.skip("needs two devices")
    used: list[str] = []
    load = media_loader._device

    def noting(options: EngineOptions, device: Device) -> Device:
        found = load(options, device)
        used.append(found.info.name)
        return found

    monkeypatch.setattr(media_loader, "_device", noting)
    reference = Reference(vision_folder, "gemma3")
    key = next(key for key in reference.media if key != "square.jpg")
    for encodes in ("0", "1"):
        engine = serve(reference, device="0", mmproj_device=encodes)
        found, _ = logprobs(engine, read(reference, engine, key))
        check_logits(found, reference.arrays[f"logits.{key}"])
    assert used == [devices[0].name, devices[1].name]


@pytest.mark.parametrize("name", ["llava16", "gemma3"])
def test_an_image_is_encoded_once_and_its_places_are_shared(
    vision_folder: Path, serve: Callable[..., Engine], name: str
) -> None:
    reference = Reference(vision_folder, name)
    engine = serve(reference)
    first, _ = logprobs(engine, read(reference, engine, "wide"))
    with counted_passes() as passes:
        again, end = logprobs(engine, read(reference, engine, "wide"))
        uncached, all_anew = logprobs(engine, read(reference, engine, "wide"), cache_prompt=False)
        assert passes == []
    if name != "gemma3":  # of whose windows a prompt so short leaves no checkpoint
        assert end.timings.prompt_n == 1
    assert all_anew.timings.cache_n == 0
    check_logits(again, first)
    check_logits(uncached, first)


def test_a_saved_slot_has_its_image(
    vision_folder: Path, serve: Callable[..., Engine], tmp_path: Path
) -> None:
    """Another engine goes on from the file without encoding anything; one without the projector
    refuses it."""
    reference = Reference(vision_folder, "llava15")
    first, other = serve(reference), serve(reference)
    found, _ = logprobs(first, read(reference, first, "wide"))
    first.save_slot(0, tmp_path / "slot").result(SECONDS)
    other.restore_slot(0, tmp_path / "slot").result(SECONDS)
    with counted_passes() as passes:
        again, end = logprobs(other, read(reference, other, "wide"))
        assert passes == []
    assert end.timings.prompt_n == 1
    check_logits(again, found)


def test_embeddings_of_an_image(
    vision_folder: Path, serve: Callable[..., Engine], conformance_model: Build
) -> None:
    """The last token's state, which the output matrix makes llama.cpp's logits of; the mean is that
    of all states, the image's too."""
    reference = Reference(vision_folder, "llava15")
    engine = serve(reference)
    prompt = read(reference, engine, "wide")
    (last,), states, (mean,) = (
        embedded(engine, prompt, pooling) for pooling in ("last", "none", "mean")
    )
    with open_gguf(conformance_model(text_model(reference))) as gguf:
        output = gguf.floats("output.weight").reshape(-1, len(last))
    check_logits(output @ last, reference.arrays["logits.wide"])
    assert len(states) == len(prompt.ids)
    np.testing.assert_allclose(states.mean(0), mean, rtol=1e-4, atol=1e-4)


def embedded(engine: Engine, prompt: MediaPrompt, pooling: Pooling) -> np.ndarray:
    """float32 [vectors, n_embd]."""
    events: Queue[Event] = Queue()
    request = Request(prompt.ids, media=prompt.spans, wants=Embedding(pooling))
    engine.submit(request, events.put)
    while not isinstance(event := events.get(timeout=SECONDS), Embedded):
        assert isinstance(event, Started), event
    return np.array(event.vectors)


def test_images_in_small_steps(vision_folder: Path, serve: Callable[..., Engine]) -> None:
    """Causal images may be cut, those whose tokens see each other not."""
    for name, n_ubatch in (("llava16", 8), ("gemma3", 24)):
        reference = Reference(vision_folder, name)
        engine = serve(reference, n_ubatch=n_ubatch)
        found, _ = logprobs(engine, read(reference, engine, "tall"))
        check_logits(found, reference.arrays["logits.tall"])


def test_the_encoder_leaves_memory_with_the_model(
    vision_folder: Path, serve: Callable[..., Engine]
) -> None:
    engine = serve(Reference(vision_folder, "llava15"))
    encoder = weakref.ref(engine._loop._media_turns._encoder)
    engine.release()
    gc.collect()
    assert encoder() is None


def test_an_image_that_must_go_at_once_and_cannot(
    vision_folder: Path, serve: Callable[..., Engine]
) -> None:
    reference = Reference(vision_folder, "gemma3")
    engine = serve(reference, n_ubatch=16)
    with pytest.raises(RequestError, match=r"an image has 16 tokens.*increase the physical"):
        logprobs(engine, read(reference, engine, "tall"))


def test_two_images_with_one_beginning_differ(
    vision_folder: Path, serve: Callable[..., Engine]
) -> None:
    """Two requests at once, of the same text and other images, disturb each other in nothing."""
    reference = Reference(vision_folder, "gemma3")
    engine = serve(reference)
    prompts = [read(reference, engine, key) for key in ("square", "wide", "tall")]
    with ThreadPoolExecutor(3) as pool:
        results = list(pool.map(lambda prompt: logprobs(engine, prompt)[0], prompts))
    for key, found in zip(("square", "wide", "tall"), results, strict=True):
        check_logits(found, reference.arrays[f"logits.{key}"])


@pytest.mark.parametrize("name", ["llava15", "gemma3"])
def test_pauses_for_want_of_pages(
    vision_folder: Path, serve: Callable[..., Engine], name: str
) -> None:
    """Who comes back shows its image anew, without another pass of the encoder."""
    reference = Reference(vision_folder, name)
    engine = serve(reference, n_ctx=384 if name == "llava15" else 256, n_ubatch=64)
    keys = ("square", "wide", "tall", "square", "wide")
    prompts = [read(reference, engine, key) for key in keys]
    with counted_passes() as passes:
        with at_once(engine):
            events = [submit(engine, prompt, 120) for prompt in prompts]
        together = [answer(queue) for queue in events]
    assert engine.stats().n_preempted > 0
    assert len(passes) == 3
    assert engine.stats().n_pages_used == 0
    for prompt, found in zip(prompts, together, strict=True):
        assert answer(submit(engine, prompt, 120, cache_prompt=False)) == found


def test_cancelled_while_its_image_is_encoded(
    vision_folder: Path, serve: Callable[..., Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pass ends first; what it has made is kept for the next who shows the image."""
    reference = Reference(vision_folder, "llava15")
    engine = serve(reference)
    encode, begun, go_on = MediaEncoder.encode, threading.Event(), threading.Event()

    def slow(self: MediaEncoder, span: MediaSpan) -> Any:
        begun.set()
        assert go_on.wait(SECONDS)
        return encode(self, span)

    monkeypatch.setattr(MediaEncoder, "encode", slow)
    prompt, events = read(reference, engine, "wide"), Queue[Event]()
    ticket = engine.submit(Request(prompt.ids, media=prompt.spans), events.put)
    assert begun.wait(SECONDS)
    engine.cancel(ticket)
    go_on.set()
    while not isinstance(event := events.get(timeout=SECONDS), Finished):
        assert not isinstance(event, Delta | Failed)
    assert event.reason == "cancelled"
    with counted_passes() as passes:
        found, _ = logprobs(engine, prompt)
    assert passes == []
    check_logits(found, reference.arrays["logits.wide"])


def submit(engine: Engine, prompt: MediaPrompt, n: int, **options: Any) -> Queue[Event]:
    """The events of a request for the likeliest n tokens."""
    events: Queue[Event] = Queue()
    sampling = SamplingParams(temperature=0, ignore_eos=True)
    request = Request(prompt.ids, sampling, max_tokens=n, media=prompt.spans, **options)
    engine.submit(request, events.put)
    return events


def answer(events: Queue[Event]) -> list[int]:
    tokens: list[int] = []
    while not isinstance(event := events.get(timeout=SECONDS), Finished):
        assert not isinstance(event, Failed), event.message
        tokens += event.tokens if isinstance(event, Delta) else ()
    return tokens


def test_a_projector_of_another_width_is_refused(
    conformance_model: Build, vision_folder: Path
) -> None:
    mine, other = (Reference(vision_folder, name) for name in ("llava15", "minicpmv2.6"))
    options = EngineOptions(mmproj=conformance_model(other.spec), n_ctx=256)
    with pytest.raises(ModelError, match=r"embeddings of 256 values, the text model takes 64"):
        load_engine(conformance_model(text_model(mine)), options)


def test_a_text_model_is_no_projector(conformance_model: Build, vision_folder: Path) -> None:
    model = conformance_model(text_model(Reference(vision_folder, "llava15")))
    with pytest.raises(ModelError, match=r"general.architecture is 'llama'; a projector"):
        load_engine(model, EngineOptions(mmproj=model, n_ctx=256))


def test_room_for_fewer_images_than_there_are(
    vision_folder: Path, serve: Callable[..., Engine]
) -> None:
    reference = Reference(vision_folder, "llava15")
    engine = serve(reference)
    assert engine.media is not None
    picture = engine.media.image((reference.folder / "images" / "tall.png").read_bytes())
    with pytest.raises(MediaError, match="room for 0 of 1 images"):
        engine.media.prompt("no place", MARKER, [picture], engine.tokenizer)


@contextmanager
def counted_passes() -> Iterator[list[bytes]]:
    """The inputs that encoders get meanwhile."""
    passes: list[bytes] = []
    encode = MediaEncoder.encode

    def counting(self: MediaEncoder, span: MediaSpan) -> Any:
        passes.append(span.key)
        return encode(self, span)

    MediaEncoder.encode = counting  # type: ignore[method-assign]
    try:
        yield passes
    finally:
        MediaEncoder.encode = encode  # type: ignore[method-assign]
