"""Encoders of a voice, which speech is to have: Mimi's of Pocket TTS (https://arxiv.org/abs/2410.00037)
and ECAPA-TDNN of Qwen3-TTS (https://arxiv.org/abs/2005.07143)."""

from __future__ import annotations

import numpy as np

from gguf_serve.engine.encoders.audio_file import AudioFile
from gguf_serve.engine.encoders.causal import convolved
from gguf_serve.engine.encoders.geometry import Floats, Ints, by_place, rotation
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.vit import Tower, linear, transformer
from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.media.mel import MIMI_FRAME, MIMI_STRIDES
from gguf_serve.engine.recording.rows import Rows

MIMI_WINDOW = 250  # rows that one sees, itself among them
ROPE_BASE = 10000.0
DILATIONS = (2, 3, 4)
N_PARTS = 8  # of the channels, each convolved after the one before it (Res2Net)
LEAST_VARIANCE = 1e-12


# --- Pocket TTS ---


def mimi(g: Graph, spec: AudioFile, n_samples: int, like_llama_cpp: bool) -> Rows:
    """A row for 1920 samples. The model's GELU is the exact one, llama.cpp's that of tanh."""
    x = convolved(g, g.input(n_samples, 1), "a.seanet.conv_in")
    for i, stride in enumerate(MIMI_STRIDES):
        b = f"a.seanet.blk.{i}."
        x = convolved(g, elu(g, residual_unit(g, x, b)), f"{b}scale_conv", stride)
    x = convolved(g, elu(g, x), "a.seanet.conv_out")
    t = mimi_tower(spec.n_layers, spec.n_heads, spec.width, spec.eps, "a", like_llama_cpp)
    x = mimi_transformer(g, x, t)
    stride = MIMI_FRAME // int(np.prod(MIMI_STRIDES))
    return linear(g, convolved(g, x, "a.downsample.conv", stride, repeat=True), "a.speaker_proj")


def elu(g: Graph, x: Rows) -> Rows:
    return g.activate(x, "elu")


def residual_unit(g: Graph, x: Rows, b: str) -> Rows:
    """x plus what two convolutions make of it, those whose names begin with ``b``."""
    y = convolved(g, elu(g, x), f"{b}res_conv1")
    return g.add(x, convolved(g, elu(g, y), f"{b}res_conv2"))


def mimi_tower(
    n_layers: int, n_heads: int, width: int, eps: float, prefix: str, like_llama_cpp: bool
) -> Tower:
    """The transformer of Mimi's encoder and of its decoder."""
    return Tower(
        n_layers, n_heads, width, eps, "gelu" if like_llama_cpp else "gelu_erf", prefix=prefix,
        causal=True, window=MIMI_WINDOW - 1,
    )  # fmt: skip


def mimi_transformer(g: Graph, x: Rows, tower: Tower) -> Rows:
    rope = g.constant_rope(rotation(by_place(np.arange(x.count), tower.head, ROPE_BASE)))
    return transformer(g, x, tower, lambda i: [x.count], rope, neox=False)


# --- Qwen3-TTS ---


def ecapa(g: Graph, spec: AudioFile, n_frames: int, like_llama_cpp: bool) -> Rows:
    """Features of frames, whose statistics are the voice."""
    x = _reflected(g, g.input(n_frames, spec.n_mels), "a.conv1d.0")
    found = []
    for i, dilation in enumerate(DILATIONS, 1):
        x = _block(g, x, f"a.blk.{i}.", dilation)
        found.append(x)
    return g.activate(linear(g, g.side_by_side(found), "a.conv_out"), "relu")


def _reflected(g: Graph, x: Rows, name: str, dilation: int = 1) -> Rows:
    """relu of x convolved along its rows, which are mirrored at both ends."""
    kernel = g.weights.shape(f"{name}.weight")[0]
    taps: Ints = np.arange(x.count)[:, None] + dilation * (np.arange(kernel) - kernel // 2)
    taps = np.abs(taps)
    taps = np.minimum(taps, 2 * (x.count - 1) - taps)
    return g.activate(linear(g, g.gather(x, taps, by_channel=True), name), "relu")


def _block(g: Graph, x: Rows, b: str, dilation: int) -> Rows:
    """x plus what is left of it after convolutions and a gate for each channel."""
    y = g.activate(linear(g, x, f"{b}conv_pw1"), "relu")
    first, *parts = y.split(*[y.width // N_PARTS] * N_PARTS)
    done, last = [first], None
    for i, part in enumerate(parts):
        part = g.alone(part)
        last = _reflected(g, part if last is None else g.add(part, last), f"{b}res2.{i}", dilation)
        done.append(last)
    y = g.activate(linear(g, g.side_by_side(done), f"{b}conv_pw2"), "relu")
    n = y.count
    mean = g.mixed(y, np.arange(n)[None], np.full((1, n), 1 / n, np.float32))
    gate = linear(g, g.activate(linear(g, mean, f"{b}se_conv1"), "relu"), f"{b}se_conv2")
    gates = g.gather(gate, np.zeros((n, 1)))
    return g.add(x, g.activate(gates, "sigmoid", times=y))


def statistics(weights: EncoderWeights, spec: AudioFile, rows: Floats) -> Floats:
    """[1, 2 width]: means and deviations of each channel over all frames, in shares that attention
    to them with their plain means and deviations gives."""
    mean, deviation = _moments(rows, np.full_like(rows, 1 / len(rows)))
    seen = np.concatenate([rows, *(np.tile(m, (len(rows), 1)) for m in (mean, deviation))], axis=1)
    hidden = np.tanh(np.maximum(_linear(weights, seen, "a.asp_tdnn"), 0))
    scores = _linear(weights, hidden, "a.asp_attn")
    shares = np.exp(scores - scores.max(axis=0))
    return np.concatenate(_moments(rows, shares / shares.sum(axis=0)), axis=1)


def _linear(weights: EncoderWeights, x: Floats, name: str) -> Floats:
    matrix = weights.floats(f"{name}.weight").reshape(-1, x.shape[1])
    found: Floats = x @ matrix.T + weights.floats(f"{name}.bias").reshape(-1)
    return found


def _moments(rows: Floats, shares: Floats) -> list[Floats]:
    """Mean and deviation of each column, [1, width]."""
    mean = (shares * rows).sum(axis=0, keepdims=True)
    variance = (shares * (rows - mean) ** 2).sum(axis=0, keepdims=True)
    return [mean, np.sqrt(variance + LEAST_VARIANCE).astype(np.float32)]


def voice(g: Graph, spec: AudioFile, n: int) -> Rows:
    """The one row that speech is given."""
    width = g.weights.shape("mm.a.fc.weight")[1]
    return linear(g, g.input(n, width), "mm.a.fc")
