"""Conformers (https://arxiv.org/abs/2005.08100): encoders of sounds whose layers have attention
with relative positions and a convolution between two halves of an FFN. Gemma 4's, and those of
LFM2 Audio, Parakeet and Granite Speech, which are alike."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from gguf_serve.engine.encoders.audio_file import AudioFile
from gguf_serve.engine.encoders.families.qformer import EPS as QFORMER_EPS
from gguf_serve.engine.encoders.families.qformer import qformer_layer
from gguf_serve.engine.encoders.geometry import Floats, under_kernel
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.vit import linear, mlp, normalized
from gguf_serve.engine.media.sounds import GRANITE_WINDOW
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.kernels.rows.norm import NormWeights

GEMMA4_EPS = 1e-6  # whatever the file says
GEMMA4_WINDOW = 12  # a frame sees itself and the 11 before it
GEMMA4_CAP = 50.0  # of scores
GEMMA4_STRIDES = 2  # convolutions that halve the spectrogram

EPS = 1e-5  # of norms outside the layers
PARAKEET_EPS = 1e-6
LFM2_SINES = 512  # values of a distance, however wide the layers are


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


def gemma4(g: Graph, spec: AudioFile, n_frames: int, like_llama_cpp: bool) -> Rows:
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


# --- LFM2 Audio, Parakeet, Granite Speech ---

Attend = Callable[[Graph, Rows, str], Rows]


def lfm2(g: Graph, spec: AudioFile, n_frames: int, like_llama_cpp: bool) -> Rows:
    x = _subsampled(g, spec, n_frames)
    attend = _transformer_xl(g, spec, x.count, LFM2_SINES)
    for i in range(spec.n_layers):
        x = _layer(g, x, f"a.blk.{i}.", spec.eps, attend)
    x = normalized(g, x, "mm.a.mlp.0", EPS)
    return mlp(g, x, "mm.a.mlp.1", "mm.a.mlp.3", "gelu_erf")


def parakeet(g: Graph, spec: AudioFile, n_frames: int, like_llama_cpp: bool) -> Rows:
    x = _subsampled(g, spec, n_frames)
    attend = _transformer_xl(g, spec, x.count, spec.width)
    for i in range(spec.n_layers):
        x = _layer(g, x, f"a.blk.{i}.", spec.eps, attend)
    x = normalized(g, x, "mm.a.norm_pre", PARAKEET_EPS, rms=True)
    return mlp(g, x, "mm.a.mlp.1", "mm.a.mlp.2", "relu2")


def granite(g: Graph, spec: AudioFile, n_frames: int, like_llama_cpp: bool) -> Rows:
    """After half of the layers what they predict (CTC) is added. Three queries stand for every 15
    frames; their GELU is the exact one, llama.cpp's that of tanh."""
    w = g.weights
    x = linear(g, g.input(n_frames, spec.n_mels), "a.input_projection")
    features = {0: x}
    for i in range(spec.n_layers):
        x = features[i + 1] = _layer(g, x, f"a.blk.{i}.", spec.eps, _shaw(spec, n_frames))
        if i + 1 == spec.n_layers // 2:
            predicted = g.softmax(linear(g, x, "a.enc_ctc_out"))
            x = g.add(x, linear(g, predicted, "a.enc_ctc_out_mid"))
    read = [features[i] for i in spec.feature_layers]
    x = g.side_by_side([*read, x]) if read else x
    windows = -(-n_frames // GRANITE_WINDOW)
    places = np.arange(windows * GRANITE_WINDOW)
    x = g.gather(x, np.where(places < n_frames, places, -1)[:, None])
    queries = normalized(g, g.constant(w.floats("a.proj_query")), "a.proj_norm", QFORMER_EPS)
    queries = g.gather(queries, np.tile(np.arange(queries.count), windows)[:, None])
    layers = len(w.names(".self_attn_q.weight"))
    for i in range(layers):
        queries = qformer_layer(
            g, queries, x, f"a.proj_blk.{i}.", windows=windows, head=spec.query_head,
            activation="gelu" if like_llama_cpp else "gelu_erf",
        )  # fmt: skip
    return linear(g, queries, "a.proj_linear")


def _subsampled(g: Graph, spec: AudioFile, n_frames: int) -> Rows:
    """A row for every eight frames: a convolution, then two of each channel by itself."""
    grid = n_frames, spec.n_mels
    taps, grid = under_kernel(grid, 3, 2)
    x = linear(g, g.gather(g.input(n_frames * spec.n_mels, 1), taps, by_channel=True), "a.conv1d.0")
    x = g.activate(x, "relu")
    for single, every in ((2, 3), (5, 6)):
        name = f"a.conv1d.{single}"
        taps, grid = under_kernel(grid, 3, 2)
        kernel = g.weights.floats(f"{name}.weight").reshape(x.width, -1).T
        x = g.mixed(x, taps, np.ascontiguousarray(kernel))
        x = g.add(x, g.constant(g.weights.floats(f"{name}.bias").reshape(1, -1)))
        x = g.activate(linear(g, x, f"a.conv1d.{every}"), "relu")
    places = np.arange(x.count).reshape(grid)
    return linear(g, g.gather(x, places, by_channel=True), "a.pre_encode.out")


def _layer(g: Graph, x: Rows, b: str, eps: float, attend: Attend) -> Rows:
    x = _half_ffn(g, x, b, "", eps)
    y = attend(g, normalized(g, x, f"{b}ln1", eps), b)
    x = g.add(x, linear(g, y, f"{b}attn_out"))
    x = g.add(x, _convolution(g, normalized(g, x, f"{b}norm_conv", eps), b))
    return normalized(g, _half_ffn(g, x, b, "_1", eps), f"{b}ln2", eps)


def _half_ffn(g: Graph, x: Rows, b: str, which: str, eps: float) -> Rows:
    y = normalized(g, x, f"{b}ffn_norm{which}", eps)
    return g.add(x, mlp(g, y, f"{b}ffn_up{which}", f"{b}ffn_down{which}", "silu"), scale=0.5)


def _convolution(g: Graph, x: Rows, b: str) -> Rows:
    """With a batch norm, which files have folded into a factor and a sum or not."""
    w = g.weights
    y = gated_half(g, linear(g, x, f"{b}conv_pw1"))
    y = depthwise(g, y, f"{b}conv_dw", w.shape(f"{b}conv_dw.weight")[0] // 2)
    scale, shift = (w.floats(f"{b}conv_norm.{name}") for name in ("weight", "bias"))
    if w.has(f"{b}conv_norm_mean"):
        mean, variance = (w.floats(f"{b}conv_norm_{name}") for name in ("mean", "var"))
        scale = (scale / np.sqrt(variance)).astype(np.float32)
        shift = shift - mean * scale
    if w.has(f"{b}conv_dw.bias"):
        shift = shift + w.floats(f"{b}conv_dw.bias") * scale
    y = g.mixed(y, np.arange(y.count)[:, None], scale.reshape(1, -1))
    y = g.activate(g.add(y, g.constant(shift.reshape(1, -1))), "silu")
    return linear(g, y, f"{b}conv_pw2")


def _transformer_xl(g: Graph, spec: AudioFile, n: int, n_sines: int) -> Attend:
    """Scores (q + u) k + (q + v) P(distance) (https://arxiv.org/abs/1901.02860)."""
    distances = np.arange(1 - n, n)
    angles = distances[:, None] * 10000.0 ** (-2 * np.arange(n_sines // 2) / n_sines)
    sines = np.stack([np.sin(angles), np.cos(angles)], axis=2).reshape(len(distances), -1)
    ranges = np.tile([0, n], (n, 1))

    def attend(g: Graph, x: Rows, b: str) -> Rows:
        q, k, v = (linear(g, x, f"{b}attn_{name}") for name in "qkv")
        by_content, by_place = (
            g.add(q, g.constant(g.weights.floats(f"{b}pos_bias_{name}").reshape(1, -1)))
            for name in "uv"
        )
        table = linear(g, g.constant(sines), f"{b}linear_pos")
        scale = (spec.width / spec.n_heads) ** -0.5
        return g.relative_attention(
            by_content, k, v, spec.n_heads, ranges, table, zero=n - 1, p=by_place, scale=scale
        )

    return attend


def _shaw(spec: AudioFile, n: int) -> Attend:
    """Inside blocks, with an embedding of each distance (https://arxiv.org/abs/1803.02155)."""
    places = np.arange(n)
    first = places // spec.n_block * spec.n_block
    ranges = np.stack([first, np.minimum(first + spec.n_block, n)], axis=1)

    def attend(g: Graph, x: Rows, b: str) -> Rows:
        q, k, v = (linear(g, x, f"{b}attn_{name}") for name in "qkv")
        table = np.tile(g.weights.floats(f"{b}attn_rel_pos_emb"), (1, spec.n_heads))
        scale = (spec.width / spec.n_heads) ** -0.5
        return g.relative_attention(
            q, k, v, spec.n_heads, ranges, g.constant(table), zero=spec.reach, scale=scale
        )

    return attend
