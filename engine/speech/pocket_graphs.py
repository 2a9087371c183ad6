"""What Pocket TTS speaks with, as graphs: the flow that makes points of a latent space, and the
decoder of Mimi (https://arxiv.org/abs/2410.00037).

The flow (https://arxiv.org/abs/2505.18825) goes from noise to a point in one step, and is told both
times. Its network is an MLP with adaptive norms (https://arxiv.org/abs/2406.11838).
"""

from __future__ import annotations

import numpy as np

from gguf_serve.engine.encoders.causal import convolved, transposed
from gguf_serve.engine.encoders.families.voice import (
    elu,
    mimi_tower,
    mimi_transformer,
    residual_unit,
)
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.vit import Tower, linear, normalized
from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.media.mel import MIMI_FRAME, MIMI_STRIDES
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.speech.speaker import Floats

TIMES = (0.0, 1.0)  # of noise and of points
NORM_EPS, TIME_EPS = 1e-6, 1e-5
STRIDES = MIMI_STRIDES[::-1]
DENSITY = MIMI_FRAME // int(np.prod(STRIDES))  # rows of the transformer for a frame
FLOW, WAV, NET = "a.gen.flow.", "a.gen.wav.", "a.gen.wav.seanet."


# --- the flow ---


def times(g: Graph) -> Rows:
    """Embeddings of the flow's two times side by side, not normalized yet."""
    found = []
    for i, time in enumerate(TIMES):
        angles = time * g.weights.floats(f"{FLOW}time.{i}.freqs").reshape(1, -1)
        x = g.constant(np.concatenate([np.cos(angles), np.sin(angles)], axis=1))
        x = g.activate(linear(g, x, f"{FLOW}time.{i}.up"), "silu")
        found.append(linear(g, x, f"{FLOW}time.{i}.down"))
    return g.side_by_side(found)


def mean_time(weights: EncoderWeights, rows: Floats) -> Floats:
    """[1, width]: the mean of the two embeddings [1, 2 width], each divided by its deviation."""
    found: list[Floats] = [
        x / np.sqrt(x.var(ddof=1) + TIME_EPS) * weights.floats(f"{FLOW}time.{i}.norm").reshape(-1)
        for i, x in enumerate(rows.reshape(len(TIMES), -1))
    ]
    mean: Floats = np.mean(np.stack(found), axis=0, keepdims=True)
    return mean


def flow(g: Graph, n_latent: int, width: int, moment: Floats) -> Rows:
    """Of a state [1, width] and noise [1, n_latent] the point, its embedding and the score of an
    end, side by side; ``moment``: mean_time()."""
    state, noise = g.input(1, width), g.input(1, n_latent)
    y = g.add(linear(g, state, f"{FLOW}cond_embd"), g.constant(moment))
    condition = g.activate(y, "silu")
    x = linear(g, noise, f"{FLOW}input_proj")
    n_blocks = sum(name.startswith(f"{FLOW}blk.") for name in g.weights.names(".ada.weight"))
    for b in (f"{FLOW}blk.{i}." for i in range(n_blocks)):
        shift, scale, gate = linear(g, condition, f"{b}ada").split(*[x.width] * 3)
        h = _modulated(g, normalized(g, x, f"{b}norm", NORM_EPS), shift, scale)
        h = linear(g, g.activate(linear(g, h, f"{b}up"), "silu"), f"{b}down")
        x = g.add(x, g.activate(gate, "none", times=h))
    shift, scale = linear(g, condition, f"{FLOW}final.ada").split(*[x.width] * 2)
    x = _modulated(g, normalized(g, x, f"{FLOW}final.norm", NORM_EPS), shift, scale)
    point = g.add(noise, linear(g, x, f"{FLOW}final.proj"))
    embedding = linear(g, point, "a.gen.input_linear")
    return g.side_by_side([point, embedding, linear(g, state, "a.gen.out_eos")])


def _modulated(g: Graph, x: Rows, shift: Rows, scale: Rows) -> Rows:
    """x (1 + scale) + shift."""
    return g.add(g.add(x, g.activate(scale, "none", times=x)), shift)


# --- Mimi's decoder ---


def decoder(gguf: GGUFFile, like_llama_cpp: bool) -> Tower:
    """Mimi's transformer as a projector file describes it."""
    return mimi_tower(
        gguf.get_int("clip.gen.audio.block_count"),
        gguf.get_int("clip.gen.audio.attention.head_count"),
        gguf.get_int("clip.gen.audio.embedding_length"),
        gguf.get_float("clip.gen.audio.attention.layer_norm_epsilon"),
        f"{WAV}tfm", like_llama_cpp,
    )  # fmt: skip


def transformed(g: Graph, points: Rows, tower: Tower) -> Rows:
    """``DENSITY`` rows for each point of the latent space."""
    x = linear(g, points, f"{WAV}quant_out")
    return mimi_transformer(g, transposed(g, x, f"{WAV}upsample", DENSITY), tower)


def samples(g: Graph, x: Rows) -> Rows:
    """Samples, rows of one value, of the transformer's rows."""
    x = convolved(g, x, f"{NET}conv_in")
    for i, stride in enumerate(STRIDES):
        b = f"{NET}blk.{i}."
        x = transposed(g, elu(g, x), f"{b}scale_conv", stride)
        x = residual_unit(g, x, b)
    return convolved(g, elu(g, x), f"{NET}conv_out")


def convolutions_reach(weights: EncoderWeights) -> int:
    """How many rows of the transformer before a row its samples depend on."""
    n = _taps(weights, f"{NET}conv_out") - 1  # of rows, from the last ones back
    for i, stride in reversed(list(enumerate(STRIDES))):
        b = f"{NET}blk.{i}."
        n += _taps(weights, f"{b}res_conv1") - 1
        n = -(-n // stride) + _n_seen(weights, f"{b}scale_conv", stride) - 1
    return n + _taps(weights, f"{NET}conv_in") - 1


def reach(weights: EncoderWeights, tower: Tower) -> int:
    """How many frames before a frame its samples depend on."""
    n = convolutions_reach(weights) + tower.n_layers * tower.window
    return -(-n // DENSITY) + _n_seen(weights, f"{WAV}upsample", DENSITY) - 1


def _taps(weights: EncoderWeights, name: str) -> int:
    return weights.shape(f"{name}.weight")[0]


def _n_seen(weights: EncoderWeights, name: str, stride: int) -> int:
    """How many rows a row of a transposed convolution is made of."""
    return -(-_taps(weights, name) // stride)
