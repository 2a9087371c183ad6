"""Conformers (https://arxiv.org/abs/2005.08100): encoders of sounds whose layers have attention
with relative positions and a convolution between two halves of an FFN. Gemma 4's."""

from __future__ import annotations

import math

import numpy as np

from gguf_serve.engine.encoders.audio_file import AudioFile
from gguf_serve.engine.encoders.geometry import Floats, under_kernel
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.vit import linear, normalized
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.kernels.rows.norm import NormWeights

GEMMA4_EPS = 1e-6  # whatever the file says
GEMMA4_WINDOW = 12  # a frame sees itself and the 11 before it
GEMMA4_CAP = 50.0  # of scores
GEMMA4_STRIDES = 2  # convolutions that halve the spectrogram


def depthwise(g: Graph, x: Rows, name: str, before: int) -> Rows:
    """Each column convolved along the rows with its own kernel, ``before`` taps of which lie on
    earlier rows."""
    kernel = g.weights.floats(f"{name}.weight").reshape(x.width, -1).T
    taps = np.arange(x.count)[:, None] + np.arange(len(kernel)) - before
    return g.mixed(x, np.where(taps < x.count, taps, -1), np.ascontiguousarray(kernel))


def gated_half(g: Graph, x: Rows) -> Rows:
    """The first half of the columns times the sigmoid of the second (GLU)."""
    value, gate = x.split(x.width // 2, x.width // 2)
    return g.activate(gate, "sigmoid", times=value)


# --- Gemma 4 ---


def gemma4(g: Graph, spec: AudioFile, n_frames: int) -> Rows:
    x = _gemma4_stem(g, spec, n_frames)
    for i in range(spec.n_layers):
        b = f"a.blk.{i}."
        x = _gemma4_ffn(g, x, b, "")
        y = _gemma4_attention(g, _rms(g, x, f"{b}attn_pre_norm"), spec, b)
        x = g.add(x, _rms(g, y, f"{b}attn_post_norm"))
        x = g.add(x, _gemma4_convolution(g, x, b))
        x = _gemma4_ffn(g, x, b, "_1")
        x = _rms(g, x, f"{b}ln2")
    x = g.norm(linear(g, x, "a.pre_encode.out"), NormWeights(None, GEMMA4_EPS, weightless=True))
    return linear(g, x, "mm.a.input_projection")


def _rms(g: Graph, x: Rows, name: str) -> Rows:
    return normalized(g, x, name, GEMMA4_EPS, rms=True)


def _gemma4_stem(g: Graph, spec: AudioFile, n_frames: int) -> Rows:
    """A row for every four frames, made by convolutions in time and frequency."""
    height, width = n_frames, spec.n_mels
    x = g.input(height * width, 1)
    for i in range(GEMMA4_STRIDES):
        taps, (height, width) = under_kernel((height, width), 3, 2)
        x = linear(g, g.gather(x, taps, by_channel=True), f"a.conv1d.{i}")
        x = g.activate(normalized(g, x, f"a.conv1d.{i}.norm", GEMMA4_EPS), "relu")
    return linear(g, x.reshaped(height), "a.input_projection")


def _gemma4_ffn(g: Graph, x: Rows, b: str, which: str) -> Rows:
    y = linear(g, _rms(g, x, f"{b}ffn_norm{which}"), f"{b}ffn_up{which}")
    y = linear(g, g.activate(y, "silu"), f"{b}ffn_down{which}")
    return g.add(x, _rms(g, y, f"{b}ffn_post_norm{which}"), scale=0.5)


def _gemma4_attention(g: Graph, x: Rows, spec: AudioFile, b: str) -> Rows:
    """Scores are q (k + P(distance)), with a factor of its own for each dimension of q."""
    q, k, v = (linear(g, x, f"{b}attn_{name}") for name in "qkv")
    head = spec.width // spec.n_heads
    per_dim = g.weights.floats(f"{b}per_dim_scale.weight") / (math.sqrt(head) * math.log(2))
    every = np.arange(x.count)
    q = g.mixed(q, every[:, None], np.tile(per_dim, spec.n_heads)[None].astype(np.float32))
    k = g.scaled(k, math.log(1 + math.e) / math.log(2))
    distances = g.constant(_sines(np.arange(GEMMA4_WINDOW), spec.width))
    table = linear(g, distances, f"{b}attn_k_rel")
    ranges = np.stack([np.maximum(every - GEMMA4_WINDOW + 1, 0), every + 1], axis=1)
    y = g.relative_attention(q, k, v, spec.n_heads, ranges, table, softcap=GEMMA4_CAP)
    return linear(g, y, f"{b}attn_out")


def _sines(distances: np.ndarray, width: int) -> Floats:
    """[distances, width]: sines, then cosines, of the distances times falling frequencies."""
    half = width // 2
    angles = distances[:, None] * 10000.0 ** (-np.arange(half) / (half - 1))
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(np.float32)


def _gemma4_convolution(g: Graph, x: Rows, b: str) -> Rows:
    """Files have the names of its two norms exchanged."""
    y = gated_half(g, linear(g, _rms(g, x, f"{b}conv_norm"), f"{b}conv_pw1"))
    kernel = g.weights.shape(f"{b}conv_dw.weight")[0]
    y = _rms(g, depthwise(g, y, f"{b}conv_dw", kernel - 1), f"{b}norm_conv")
    return linear(g, g.activate(y, "silu"), f"{b}conv_pw2")
