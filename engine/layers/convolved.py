"""Layers of WavTokenizer's decoder (https://arxiv.org/abs/2408.16532), from codes of a sound to
features of its spectrum: convolutions over tokens, which see those after them, and norms over the
whole sequence. First come residual blocks and an attention, then ConvNeXt's blocks."""

from __future__ import annotations

import numpy as np
from msgspec import Struct

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.layers.attention.attention import AttentionWeights, load_attention
from gguf_serve.engine.layers.feed_forward.ffn import FFNWeights, load_ffn
from gguf_serve.engine.layers.sublayer import Entry, Sublayer
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.group_norm import GroupNormWeights
from gguf_serve.kernels.rows.norm import NormWeights

STREAM_NORM = "token_embd_norm"  # of the stream, before the first of ConvNeXt's blocks


class Convolution(Struct, frozen=True):
    """``matrix`` reads the rows around a token, value by value, as files have its weights."""

    matrix: Linear
    taps: int

    def __call__(self, g: Graph, x: Rows) -> Rows:
        return g.linear(g.around(x, self.taps), self.matrix)


class Convolved(Struct, frozen=True):
    """The entry of a convolution alone."""

    part: int
    convolution: Convolution

    def __call__(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.part):
            return self.convolution(g, x)


class Normed(Struct, frozen=True):
    """The entry of a norm of the stream."""

    part: int
    norm: NormWeights | GroupNormWeights

    def __call__(self, g: Graph, x: Rows) -> Rows:
        with g.on(self.part):
            if isinstance(self.norm, GroupNormWeights):
                return g.group_norm(x, self.norm)
            return g.norm(x, self.norm)


class ResidualBlock(Struct, frozen=True):
    """conv(silu(norm(x))), twice."""

    steps: tuple[tuple[GroupNormWeights, Convolution], ...]

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        for norm, convolution in self.steps:
            x = convolution(g, g.group_norm(x, norm, silu=True))
        return x


class NormedAttention(Struct, frozen=True):
    """Attention of what is normalized over the sequence."""

    norm: GroupNormWeights
    attention: AttentionWeights

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return self.attention(g, g.group_norm(x, self.norm), layer)


class ConvNeXtBlock(Struct, frozen=True):
    """scale * ffn(norm(conv(x))), the convolution that of each channel
    (https://arxiv.org/abs/2201.03545)."""

    kernel: Tensor  # float32 [taps, channels]
    bias: Tensor | None
    norm: NormWeights
    ffn: FFNWeights
    scale: Tensor  # float32 [1, channels]

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        y = g.norm(g.depthwise(x, self.kernel, self.bias), self.norm)
        return g.depthwise(self.ffn(g, y, layer), self.scale)


def load_convolution(
    source: TensorSource, h: Hyperparameters, name: str, width: int
) -> Convolution:
    """Of ``width`` channels; ModelError for tensors that do not fit."""
    source.check_rows(f"{name}.weight", h.n_embd)
    part = source.part(name)
    taps = part.raw.n_cols // width
    if taps * width != part.raw.n_cols or taps % 2 == 0:
        raise ModelError(
            f"tensor {name}.weight has {part.raw.n_cols} columns, not an odd multiple of {width}"
        )
    (linear,) = source.stacked([part])
    return Convolution(linear, taps)


def load_first_convolution(source: TensorSource, h: Hyperparameters) -> Convolved | None:
    """What makes the stream of the codes' embeddings, where the file has it."""
    if not source.has("conv1d.weight"):
        return None
    width = source.shape("token_embd.weight")[0]
    return Convolved(0, load_convolution(source, h, "conv1d", width))


def load_convolved_layer(source: TensorSource, h: Hyperparameters, layer: int) -> tuple[Entry, ...]:
    """A layer's entries, as its tensors show what it is (names as in stacks.py)."""
    b, part = f"blk.{layer}.", 2 * layer + 1
    if source.has(f"{b}conv1.weight"):
        steps = tuple(
            (_group_norm(source, h, f"{b}norm{i}"),
             load_convolution(source, h, f"{b}conv{i}", h.n_embd))
            for i in (1, 2)
        )  # fmt: skip
        return (Sublayer(part, layer, None, ResidualBlock(steps), None),)
    if source.has(f"{b}attn_q.weight"):
        norm = _group_norm(source, h, f"{b}attn_norm")
        attention = NormedAttention(norm, load_attention(source, h, layer))
        return (Sublayer(part, layer, None, attention, None),)
    if source.has(f"{b}attn_norm.weight"):
        return (Normed(part, _group_norm(source, h, f"{b}attn_norm")),)
    block = Sublayer(part, layer, None, _convnext(source, h, layer), None)
    if source.has(f"blk.{layer - 1}.dw.weight"):
        return (block,)
    return (Normed(part, _layer_norm(source, h, STREAM_NORM)), block)


def _convnext(source: TensorSource, h: Hyperparameters, layer: int) -> ConvNeXtBlock:
    b = f"blk.{layer}."
    kernel, taps = _floats(source, f"{b}dw.weight"), source.shape(f"{b}dw.weight")[0]
    source.check_rows(f"{b}dw.weight", h.n_embd)
    by_tap = np.ascontiguousarray(kernel.reshape(h.n_embd, taps).T)
    source.check_shape(f"{b}gamma.weight", (h.n_embd,))
    return ConvNeXtBlock(
        source.upload(by_tap), source.vector(f"{b}dw.bias"),
        _layer_norm(source, h, f"{b}norm"), load_ffn(source, h, layer),
        source.upload(_floats(source, f"{b}gamma.weight")[None]),
    )  # fmt: skip


def _group_norm(source: TensorSource, h: Hyperparameters, name: str) -> GroupNormWeights:
    weight, bias = (_floats(source, f"{name}.{x}") for x in ("weight", "bias"))
    if len(weight) != h.n_embd or len(bias) != h.n_embd or h.group_norm is None:
        raise ModelError(f"norm {name} has {len(weight)} values, not {h.n_embd}")
    return GroupNormWeights(source.upload(weight), source.upload(bias), *h.group_norm)


def _layer_norm(source: TensorSource, h: Hyperparameters, name: str) -> NormWeights:
    source.check_shape(f"{name}.weight", (h.n_embd,))
    weight, bias = (source.vector(f"{name}.{x}") for x in ("weight", "bias"))
    return NormWeights(weight, h.eps, bias, layer=True)


def _floats(source: TensorSource, name: str) -> np.ndarray[tuple[int], np.dtype[np.float32]]:
    found = source.floats(name)
    if found is None:
        raise ModelError(f"tensor {name} is missing")
    return found
