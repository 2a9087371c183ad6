"""The cache on disk with images: kept by their content, for the projector that encodes them."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asking import GREEDY, SECONDS, Reply
from vision_data import Reference

from gguf_serve.engine.encoders.encoder import MediaEncoder
from gguf_serve.engine.encoders.reader import MediaPrompt
from gguf_serve.engine.engine import Engine, load_engine
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Request
from gguf_serve.kernels.opencl.platforms import list_devices

Start = Callable[..., Engine]
MARKER = "<__media__>"


@pytest.fixture
def start(conformance_model: Callable[[str], Path], tmp_path: Path) -> Iterator[Start]:
    """Starts an engine with an empty memory and one folder for all."""
    if not list_devices():
        pytest.skip("no OpenCL device")
    engines: list[Engine] = []

    def started(reference: Reference, mmproj: Path | None = None) -> Engine:
        least, most = reference.token_limits
        options = EngineOptions(
            n_ctx=1024, n_parallel=1, n_ubatch=64, n_gpu_layers=0, kernel_family="simd",
            image_min_tokens=least, image_max_tokens=most, cache_disk=str(tmp_path / "kv"),
            cache_disk_min_tokens=32, checkpoint_min_step=32,
            mmproj=mmproj or conformance_model(reference.spec),
        )  # fmt: skip
        text = conformance_model(reference.spec.replace(".json", "-text.json"))
        engines.append(load_engine(text, options))
        disk = engines[-1]._disk
        assert disk is not None
        disk._loads._speed = lambda: 0.0  # so small a model computes as fast as a disk reads
        return engines[-1]

    yield started
    for engine in engines:
        engine.close()


def prompt_with(engine: Engine, reference: Reference, key: str) -> MediaPrompt:
    """Text, an image, text."""
    assert engine.media is not None
    image = engine.media.image((reference.folder / "images" / f"{key}.png").read_bytes())
    text = f"{'what is it? ' * 12}{MARKER}{' and why? ' * 14}"
    return engine.media.prompt(text, MARKER, [image], engine.tokenizer)


def ask(engine: Engine, prompt: MediaPrompt) -> Reply:
    reply = Reply()
    engine.submit(Request(prompt.ids, GREEDY, 6, n_probs=20, media=prompt.spans), reply)
    return reply.wait()


def wait_until_written(engine: Engine, n: int) -> None:
    end = time.monotonic() + SECONDS
    while (stats := engine.stats().disk) is None or stats.n_written < n:
        assert time.monotonic() < end, f"{stats}, not {n} files"
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["llava15", pytest.param("gemma3", marks=pytest.mark.slow)])
def test_an_image_is_found_by_its_content(
    vision_folder: Path, start: Start, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """After a restart: nothing is encoded, and what is computed is the same bit by bit."""
    reference = Reference(vision_folder, name)
    engine = start(reference)
    prompt = prompt_with(engine, reference, "wide")
    first, n_pages = ask(engine, prompt), len(prompt.ids) // 32
    wait_until_written(engine, n_pages)
    in_memory = ask(engine, prompt)

    encoded = list[bytes]()
    encode = MediaEncoder.encode
    monkeypatch.setattr(
        MediaEncoder, "encode", lambda self, span: (encoded.append(span.key), encode(self, span))[1]
    )
    again = start(reference)
    reply = ask(again, prompt_with(again, reference, "wide"))
    assert reply.n_cached > prompt.spans[0].end
    assert encoded == []
    assert reply.tokens == in_memory.tokens == first.tokens
    other = ask(again, prompt_with(again, reference, "tall"))
    assert other.n_cached <= prompt.spans[0].start
    assert len(encoded) == 1


def test_another_projector_finds_nothing(
    vision_folder: Path, start: Start, conformance_model: Callable[[str], Path], tmp_path: Path
) -> None:
    reference = Reference(vision_folder, "llava15")
    engine = start(reference)
    prompt = prompt_with(engine, reference, "wide")
    ask(engine, prompt)
    wait_until_written(engine, len(prompt.ids) // 32)
    other = tmp_path / "other.gguf"
    raw = bytearray(conformance_model(reference.spec).read_bytes())
    with open_gguf(conformance_model(reference.spec)) as gguf:
        raw[min(info.offset for info in gguf.tensors.values())] ^= 1
    other.write_bytes(raw)
    assert ask(start(reference, other), prompt).n_cached == 0
