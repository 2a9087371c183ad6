"""Embeddings of all projector types against llama.cpp's, from the same pixels on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from msgspec.structs import replace
from vision_data import IMAGES, SOUNDS, Reference, nmse

from gguf_serve.engine.encoders.audio import AudioEncoder, spectrograms
from gguf_serve.engine.encoders.audio_file import read_audio_file
from gguf_serve.engine.encoders.geometry import patch_rows
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.patches import embedded
from gguf_serve.engine.encoders.vision import VisionEncoder
from gguf_serve.engine.encoders.vision_file import read_vision_file
from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.gguf.file import GGUFFile, open_gguf
from gguf_serve.engine.media.piece import Tile
from gguf_serve.engine.media.prepare import prepare
from gguf_serve.engine.media.sound import decode_sound
from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.program import Programs

LIMIT = 1e-5  # NMSE; most are at 2e-7, which is llama.cpp's table of GELU in half precision
Build = Callable[[str], Path]
FEW = (  # each has a kernel or a path
    "cogvlm", "dots3note", "exaone4_5", "gemma4v", "granite4_vision", "mimovl", "minicpmv2.6",
    "mistral3", "qwen2.5vl", "yasa2", pytest.param("deepseekocr2", marks=pytest.mark.slow),
    pytest.param("gemma3nv", marks=pytest.mark.slow),
)  # fmt: skip


@pytest.fixture(scope="session")
def first_device() -> tuple[Device, Programs]:
    device = open_device(None)
    return device, Programs(device)


def check_images(
    device: Device, programs: Programs, build: Build, reference: Reference, keys: list[str]
) -> None:
    with open_gguf(build(reference.spec)) as gguf:
        spec = read_vision_file(gguf, *reference.token_limits)
        weights = EncoderWeights(gguf, device, programs)
        encoder = VisionEncoder(spec, weights, device, programs, like_llama_cpp=True)
        for key in keys:
            pieces = prepare(spec.kind, reference.image(key), spec.limits)
            tiles = [piece for piece in pieces if isinstance(piece, Tile)]
            rows = [encoder.encode(tile, spec.n_before(reference.start(key))) for tile in tiles]
            error = nmse(np.concatenate(rows), reference.arrays[f"embd.{key}"])
            assert error < LIMIT, f"{key}: NMSE {error:.1e}"


@pytest.mark.parametrize("name", IMAGES)
def test_images(
    first_device: tuple[Device, Programs], conformance_model: Build, vision_folder: Path, name: str
) -> None:
    reference = Reference(vision_folder, name)
    check_images(*first_device, conformance_model, reference, reference.images)


@pytest.mark.whole_models("gemma4v", "qwen2.5vl")
@pytest.mark.parametrize("name", FEW)
def test_images_in_both_families(
    device: Device, programs: Programs, conformance_model: Build, vision_folder: Path, name: str
) -> None:
    reference = Reference(vision_folder, name)
    check_images(device, programs, conformance_model, reference, reference.images[-1:])


@pytest.mark.parametrize(("name", "key"), SOUNDS.items())
def test_sounds(
    first_device: tuple[Device, Programs], conformance_model: Build, vision_folder: Path,
    name: str, key: str,
) -> None:  # fmt: skip
    check_sound(*first_device, conformance_model, Reference(vision_folder, name), key)


def test_sounds_on_every_device_in_both_families(
    device: Device, programs: Programs, conformance_model: Build, vision_folder: Path
) -> None:
    check_sound(
        device, programs, conformance_model, Reference(vision_folder, "gemma4-e2b"), "short"
    )


def check_sound(
    device: Device, programs: Programs, build: Build, reference: Reference, key: str
) -> None:
    data = (reference.folder / "images" / f"{key}.wav").read_bytes()
    with open_gguf(build(reference.spec)) as gguf:
        spec = read_audio_file(gguf)
        weights = EncoderWeights(gguf, device, programs)
        encoder = AudioEncoder(spec, weights, device, programs, like_llama_cpp=True)
        samples = decode_sound(data, rate=spec.input.rate)
        pieces = spectrograms(spec, samples, like_llama_cpp=True)
        rows = [encoder.encode(mel) for mel in pieces]
    assert nmse(np.concatenate(rows), reference.arrays[f"embd.{key}"]) < LIMIT


def test_two_frames_of_a_video(
    first_device: tuple[Device, Programs], conformance_model: Build, vision_folder: Path
) -> None:
    """Patches under the published Conv3d of two frames, in NumPy; a frame twice is a still image,
    and the order of two others counts."""
    rng = np.random.default_rng(5)
    frames = [rng.integers(256, size=(56, 84, 3), dtype=np.uint8) for _ in range(2)]
    pair, turned, still = (
        np.concatenate(shown, axis=2) for shown in (frames, frames[::-1], [frames[0], frames[0]])
    )
    with open_gguf(conformance_model(Reference(vision_folder, "qwen2vl").spec)) as gguf:
        spec = read_vision_file(gguf)
        weights = EncoderWeights(gguf, *first_device)
        rows = np.concatenate(
            [patch_rows(f.astype(np.float32) / np.float32(255), 14) for f in frames], axis=1
        )
        graph = Graph(weights, *first_device)
        out = embedded(graph, replace(spec, n_frames=2), (4, 6))
        graph.finish(out)
        assert nmse(graph.run([rows]), convolved_3d(gguf, frames)) < 1e-9
        encoder = VisionEncoder(spec, weights, *first_device)
        found = [encoder.encode(Tile(pixels)) for pixels in (pair, turned, still, frames[0])]
    assert nmse(found[2], found[3]) < 1e-9
    assert min(nmse(found[0], other) for other in found[1:]) > 1e-3


def convolved_3d(gguf: GGUFFile, frames: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.float64]:
    """[patches, width]: the sum over frames, channels and the pixels of a patch."""
    names = ("v.patch_embd.weight", "v.patch_embd.weight.1")
    kernel = np.stack([gguf.floats(name).reshape(-1, 3, 14, 14) for name in names], axis=2)
    video = np.stack(frames).astype(np.float64) / 255  # [frames, height, width, 3]
    cells = video.reshape(2, 4, 14, 6, 14, 3)
    found: npt.NDArray[np.float64] = np.einsum("ocfyx,fryqxc->rqo", kernel, cells)
    return found.reshape(24, -1)
