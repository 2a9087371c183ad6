"""Encoders of sounds: Whisper's transformer before three projectors (Ultravox, Qwen2-Audio,
Voxtral), and those with convolutions in two dimensions, Qwen3's and dots3note's."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from gguf_serve.engine.encoders.audio_file import AudioFile
from gguf_serve.engine.encoders.geometry import Floats, Ints, by_place, rotation, under_kernel
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.patches import arranged
from gguf_serve.engine.encoders.vit import Tower, gated, linear, mlp, normalized, transformer
from gguf_serve.engine.media.mel import QWEN3_UNIT
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.kernels.rows.norm import NormWeights

ULTRAVOX_EPS = 1e-6
PROJECTOR_EPS = 1e-5
ROPE_BASE = 10000.0


def tower(spec: AudioFile) -> Tower:
    return Tower(spec.n_layers, spec.n_heads, spec.width, spec.eps, "gelu_erf", prefix="a")


def _taps(n: int, stride: int) -> Ints:
    """[outputs, 3]: the frames under a kernel of three, -1 outside."""
    centers = np.arange(0, n, stride)[:, None] + np.array([-1, 0, 1])
    return np.where((centers < 0) | (centers >= n), -1, centers).astype(np.int32)


def _convolved(g: Graph, x: Rows, taps: Ints, name: str) -> Rows:
    return g.activate(linear(g, g.gather(x, taps, by_channel=True), name), "gelu_erf")


def stem(g: Graph, spec: AudioFile, n_frames: int) -> Rows:
    """A row for two frames."""
    x = g.input(n_frames, spec.n_mels)
    x = _convolved(g, x, _taps(n_frames, 1), "a.conv1d.1")
    return _convolved(g, x, _taps(n_frames, 2), "a.conv1d.2")


def _whisper(g: Graph, spec: AudioFile, n_frames: int) -> Rows:
    """The transformer's output, one row for two frames."""
    x = stem(g, spec, n_frames)
    x = g.add(x, g.constant(g.weights.floats("a.position_embd.weight")[: x.count]))
    return transformer(g, x, tower(spec), lambda i: [x.count])


def _means(g: Graph, x: Rows) -> Rows:
    """The means of every two rows."""
    index = np.arange(x.count // 2 * 2).reshape(-1, 2)
    return g.mixed(x, index, np.full(index.shape, 0.5, np.float32))


def _stacked(x: Rows, factor: int) -> Rows:
    """Rows side by side; a last incomplete group is dropped."""
    n = x.count // factor
    return x.first(n * factor).reshaped(n)


def qwen2a(g: Graph, spec: AudioFile, n_frames: int, like_llama_cpp: bool) -> Rows:
    x = normalized(g, _means(g, _whisper(g, spec, n_frames)), "a.post_ln", spec.eps)
    return linear(g, x, "mm.a.fc")


def ultravox(g: Graph, spec: AudioFile, n_frames: int, like_llama_cpp: bool) -> Rows:
    x = normalized(g, _whisper(g, spec, n_frames), "a.post_ln", spec.eps)
    x = normalized(g, _stacked(x, spec.stack), "mm.a.norm_pre", ULTRAVOX_EPS, rms=True)
    both = linear(g, x, "mm.a.mlp.1")
    value, gate = both.split(both.width // 2, both.width // 2)
    x = g.activate(gate, "silu", times=value)
    x = normalized(g, x, "mm.a.norm_mid", ULTRAVOX_EPS, rms=True)
    return linear(g, x, "mm.a.mlp.2")


def voxtral(g: Graph, spec: AudioFile, n_frames: int, like_llama_cpp: bool) -> Rows:
    x = normalized(g, _means(g, _whisper(g, spec, n_frames)), "a.post_ln", spec.eps)
    return mlp(g, _stacked(x, spec.stack), "mm.a.mlp.1", "mm.a.mlp.2", "gelu_erf")


def glma(g: Graph, spec: AudioFile, n_frames: int, like_llama_cpp: bool) -> Rows:
    """Two vectors of the file are around all."""
    x = normalized(g, _whisper(g, spec, n_frames), "mm.a.norm_pre", spec.eps)
    x = mlp(g, _stacked(x, spec.stack), "mm.a.mlp.1", "mm.a.mlp.2", "gelu_erf")
    ends = np.stack([g.weights.floats(f"v.{name}") for name in ("boi", "eoi")])
    return arranged(g, x, ends, [-1, *range(x.count), -2])


def meralion(g: Graph, spec: AudioFile, n_frames: int, like_llama_cpp: bool) -> Rows:
    x = normalized(g, _whisper(g, spec, n_frames), "a.post_ln", spec.eps)
    x = normalized(g, _stacked(x, spec.stack), "mm.a.norm_pre", spec.eps)
    x = g.activate(linear(g, x, "mm.a.mlp.0"), "silu")
    return linear(g, gated(g, x, "mm.a.mlp.1", "mm.a.mlp.2", "silu"), "mm.a.mlp.3")


def music_flamingo(g: Graph, spec: AudioFile, n_frames: int, like_llama_cpp: bool) -> Rows:
    x = normalized(g, _means(g, _whisper(g, spec, n_frames)), "a.post_ln", spec.eps)
    return mlp(g, x, "mm.a.mlp.1", "mm.a.mlp.2", "gelu_erf")


def qwen3a(g: Graph, spec: AudioFile, n_frames: int, like_llama_cpp: bool) -> Rows:
    """Every 100 frames are convolved by themselves; attention is over all of them."""
    chunks = n_frames // QWEN3_UNIT
    x = _convolved_in_time_and_pitch(g, spec, chunks, QWEN3_UNIT)
    positions = g.weights.floats("a.position_embd.weight")[: x.count // chunks]
    x = g.add(x, g.constant(np.tile(positions, (chunks, 1))))
    x = transformer(g, x, tower(spec), lambda i: [x.count])
    x = normalized(g, x, "a.post_ln", spec.eps)
    return mlp(g, x, "mm.a.mlp.1", "mm.a.mlp.2", "gelu_erf")


def _convolved_in_time_and_pitch(g: Graph, spec: AudioFile, chunks: int, n_frames: int) -> Rows:
    """A row for every eight of so many frames of each chunk."""
    height, width = spec.n_mels, n_frames
    x = g.input(chunks * height * width, 1)
    for i in range(1, 4):
        taps, (height, width) = under_kernel((height, width), 3, 2, planes=chunks)
        x = _convolved(g, x, taps, f"a.conv2d.{i}")
    places = np.arange(chunks * height * width).reshape(chunks, height, width)
    x = g.gather(x, places.transpose(0, 2, 1).reshape(-1, height), by_channel=True)
    return linear(g, x, "a.conv_out")


def dots3note(g: Graph, spec: AudioFile, n_frames: int, like_llama_cpp: bool) -> Rows:
    """The convolutions of Qwen3's over all frames; half of each head turns."""
    x = _convolved_in_time_and_pitch(g, spec, 1, n_frames)
    turned = spec.width // spec.n_heads // 2
    angles = by_place(np.arange(x.count), turned, ROPE_BASE)
    t = replace(tower(spec), rms=True, activation="silu", turned=turned)
    x = transformer(g, x, t, lambda i: [x.count], g.constant_rope(rotation(angles)))
    x = normalized(g, x, "a.post_ln", spec.eps, rms=True)
    x = normalized(g, x, "mm.a.norm_pre", PROJECTOR_EPS)
    return mlp(g, x, "mm.a.mlp.1", "mm.a.mlp.3", "gelu_erf")


def gemma4_unified(g: Graph, spec: AudioFile, n_frames: int, like_llama_cpp: bool) -> Rows:
    """Gemma 4 without an encoder: samples go to the text model through one matrix."""
    x = g.norm(g.input(n_frames, spec.width), NormWeights(None, spec.eps, weightless=True))
    return linear(g, x, "mm.a.input_projection")


def chunks(mel: Floats, n_frames: int) -> Floats:
    """A spectrogram [mels, frames] as single values, by so many frames, then by mel."""
    parts = mel.reshape(mel.shape[0], -1, n_frames)
    return parts.transpose(1, 0, 2).reshape(-1, 1)
