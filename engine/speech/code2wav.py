"""Qwen3-TTS's vocoder, from codes to samples: embeddings of the codes, a transformer with a window,
ConvNeXt's blocks and the decoder of DAC (https://arxiv.org/abs/2306.06546), all of it causal.

It is computed without a state: frames before those that are to be heard are computed again, as far
as anything sees them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from gguf_serve.engine.encoders.causal import convolved, transposed
from gguf_serve.engine.encoders.geometry import by_place, rotation
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.vit import Tower, linear, normalized, transformer
from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.speech.lookup import Lookup
from gguf_serve.engine.speech.speaker import Features, Floats
from gguf_serve.engine.speech.vocoder import Vocoder
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

P = "a.gen.wav."
# What files do not say, of Qwen3-TTS-Tokenizer-12Hz
N_HEADS, WINDOW, EPS, ROPE_BASE = 16, 72, 1e-5, 10000.0
NORM_EPS = 1e-6  # of ConvNeXt's blocks
DILATIONS = (1, 3, 9)  # of a block's residual units


class Code2Wav:
    """Lives in the engine's thread. ``frame``: samples of a frame; ``reach``: frames before one
    that its samples depend on."""

    def __init__(
        self,
        weights: EncoderWeights,
        device: Device,
        programs: Programs,
        *,
        like_llama_cpp: bool = False,
    ) -> None:
        """The model's GELU is the exact one, llama.cpp's that of tanh."""
        self._weights, self._device, self._programs = weights, device, programs
        self._gelu = "gelu" if like_llama_cpp else "gelu_erf"
        self._strides = _numbers(weights, "up.blk.{}.conv.weight", 1)
        self._dac_strides = _numbers(weights, "dac.blk.{}.conv.weight", 2)
        layers = _numbers(weights, "tfm.blk.{}.attn_q.weight", 1)
        n_taps = weights.shape(f"{P}pre_conv.weight")[0]
        self._tower = Tower(
            len(layers), N_HEADS, weights.shape(f"{P}tfm.in_proj.weight")[1], EPS, "silu", rms=True,
            prefix="a.gen.wav.tfm", causal=True, window=WINDOW - 1,
            head_size=weights.shape(f"{P}tfm.blk.0.attn_q.weight")[1] // N_HEADS,
        )  # fmt: skip
        self.frame = int(np.prod([*self._strides, *self._dac_strides]))
        n_before = self._convolutions_reach()
        self.reach = n_before + len(layers) * (WINDOW - 1) + n_taps - 1
        books = (f"{P}quant.{which}.codebook" for which in ("first", "rest"))
        self._first, self._rest = (
            Lookup(weights.below_each_other(book), device, programs) for book in books
        )
        self.n_first_codes = weights.shape(f"{P}quant.first.codebook.weight")[1]
        self._vocabulary = weights.shape(f"{P}quant.rest.codebook.weight")[1]
        self._vocoder = Vocoder(
            self._record_transformer, self._record_convolutions,
            frame=self.frame, density=1, n_before=n_before,
        )  # fmt: skip

    def sound(self, codes: Sequence[Features], n_before: int) -> Floats:
        """See Speaker.sound."""
        rows = np.array(codes, np.int32)
        later = rows[:, 1:] + self._vocabulary * np.arange(rows.shape[1] - 1)
        acoustic = self._rest.rows(later).reshape(*later.shape, -1).sum(axis=1)
        return self._vocoder.sound([self._first.rows(rows[:, 0]), acoustic], n_before)

    def _record_transformer(self, n: int) -> Graph:
        """For so many frames."""
        g = Graph(self._weights, self._device, self._programs)
        width = self._weights.shape(f"{P}quant.first.codebook.weight")[0]
        x = linear(g, g.input(n, width), f"{P}quant.first.out_proj")
        x = g.add(x, linear(g, g.input(n, width), f"{P}quant.rest.out_proj"))
        x = linear(g, convolved(g, x, f"{P}pre_conv"), f"{P}tfm.in_proj")
        rope = g.constant_rope(rotation(by_place(np.arange(n), self._tower.head, ROPE_BASE)))
        x = transformer(g, x, self._tower, lambda i: [n], rope)
        x = normalized(g, x, f"{P}tfm.output_norm", EPS, rms=True)
        g.finish(linear(g, x, f"{P}tfm.out_proj"))
        return g

    def _record_convolutions(self, n: int) -> Graph:
        g = Graph(self._weights, self._device, self._programs)
        x = g.input(n, self._weights.shape(f"{P}tfm.out_proj.weight")[1])
        for i, stride in enumerate(self._strides):
            x = self._upsampled(g, x, f"{P}up.blk.{i}.", stride)
        x = convolved(g, x, f"{P}dac.entry")
        for i, stride in enumerate(self._dac_strides):
            x = _decoded(g, x, f"{P}dac.blk.{i}.", stride)
        g.finish(convolved(g, _snake(g, x, f"{P}dac.post_snake"), f"{P}dac.post_conv"))
        return g

    def _upsampled(self, g: Graph, x: Rows, b: str, stride: int) -> Rows:
        """A ConvNeXt block of more rows."""
        x = transposed(g, x, f"{b}conv", stride)
        y = normalized(g, convolved(g, x, f"{b}dwconv"), f"{b}norm", NORM_EPS)
        y = linear(g, y, f"{b}pw1")
        y = linear(g, g.activate(y, self._gelu), f"{b}pw2")
        scale = g.weights.vector(f"{b}gamma")
        return g.add(x, y, scale=1.0 if scale is None else scale)

    def _convolutions_reach(self) -> int:
        """Frames before one that its samples depend on, by what is convolved after the
        transformer."""
        w = self._weights
        n = w.shape(f"{P}dac.post_conv.weight")[0] - 1  # rows, from the last ones back
        for i, stride in reversed(list(enumerate(self._dac_strides))):
            for j, dilation in enumerate(DILATIONS):
                n += dilation * (w.shape(f"{P}dac.blk.{i}.res.{j}.conv1.weight")[0] - 1)
            n = -(-n // stride) + 1
        n += w.shape(f"{P}dac.entry.weight")[0] - 1
        for i, stride in reversed(list(enumerate(self._strides))):
            n = -(-(n + w.shape(f"{P}up.blk.{i}.dwconv.weight")[0] - 1) // stride)
        return n


def _decoded(g: Graph, x: Rows, b: str, stride: int) -> Rows:
    """A block of DAC's decoder: more rows, and three residual units."""
    x = transposed(g, _snake(g, x, f"{b}snake"), f"{b}conv", stride)
    for i, dilation in enumerate(DILATIONS):
        r = f"{b}res.{i}."
        y = convolved(g, _snake(g, x, f"{r}act1"), f"{r}conv1", dilation=dilation)
        x = g.add(x, convolved(g, _snake(g, y, f"{r}act2"), f"{r}conv2"))
    return x


def _snake(g: Graph, x: Rows, name: str) -> Rows:
    alpha, beta = (g.weights.vector(f"{name}.{part}") for part in ("alpha", "beta"))
    assert alpha is not None
    assert beta is not None
    return g.snake(x, alpha, beta)


def _numbers(weights: EncoderWeights, name: str, divisor: int) -> list[int]:
    """The first dimension of each block's tensor, divided."""
    found = list[int]()
    while weights.has(P + name.format(len(found))):
        found.append(weights.shape(P + name.format(len(found)))[0] // divisor)
    return found
