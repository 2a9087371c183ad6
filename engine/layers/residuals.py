"""Residual streams that are not just a sum: what a sublayer reads, and where its output goes.

A model has ``ModelWeights.residuals`` if its file has the tensors of one of these kinds, or its
architecture says so. The decoder then calls ``start`` when the embedding is in the stream,
``enter`` before a sublayer's norm reads the stream, ``leave`` when the sublayer has put its output
there instead, and ``finish`` before the last norm reads it. They keep what lasts elsewhere.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.layers.hyper import load_gated_hyper, load_hyper
from gguf_serve.engine.recording.step import Context, Step
from gguf_serve.engine.recording.tensors import TensorSource
from gguf_serve.kernels.matrix.embed import embed
from gguf_serve.kernels.matrix.moe import combine
from gguf_serve.kernels.opencl.tensor import Tensor, zeros
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.quantization.weights import Matrix
from gguf_serve.kernels.rows.depth import mix_depth
from gguf_serve.kernels.rows.norm import UNCHANGED, NormWeights, norm


class Residuals(Protocol):
    """One model's way with its residual streams; sublayer 0 is the mixer, 1 the FFN."""

    def start(self, step: Step) -> None: ...

    def enter(self, step: Step, layer: int, sublayer: int) -> None: ...

    def leave(self, step: Step, layer: int, sublayer: int) -> None: ...

    def finish(self, step: Step) -> None: ...


class ResidualsWeights(Protocol):
    """Its weights, which know how to make it for a stream."""

    def build(self, context: Context, stream: Tensor) -> Residuals: ...


def load_residuals(
    source: TensorSource, gguf: GGUFFile, h: Hyperparameters
) -> ResidualsWeights | None:
    """The model's residual streams, or None for the ordinary one."""
    if source.has("blk.0.hc_attn_fn.weight"):
        return load_hyper(source, gguf, h)
    if source.has("blk.0.hc_attn_norm.weight"):
        return load_gated_hyper(source, gguf, h)
    if source.has("blk.0.attn_res_score.weight"):
        return _load_depth(source, gguf, h)
    if h.cycles is not None:
        return CyclesWeights(source.matrix("hrm.z_l_init"), *h.cycles)
    if "normed_residuals" in h.arch.quirks:
        return _load_normed(source, gguf, h)
    return None


def _copy(step: Step, x: Tensor, out: Tensor, at: int = 0) -> None:
    norm(step.tape, x, UNCHANGED, Activations(x.shape[1], out), out_offset=at)


def _required(source: TensorSource, name: str) -> Tensor:
    vector = source.vector(name)
    if vector is None:
        raise ModelError(f"tensor {name} is missing")
    return vector


@dataclass(frozen=True, slots=True)
class DepthWeights:
    """Kimi K3 (https://arxiv.org/abs/2603.15031): every so many layers the stream is put aside
    and begins again; sublayers read a mixture of it and what has been put aside."""

    every: int
    scores: tuple[tuple[Tensor, Tensor], ...]
    end: Tensor
    eps: float

    def build(self, context: Context, stream: Tensor) -> Depth:
        return Depth(self, context, stream)


def _load_depth(source: TensorSource, gguf: GGUFFile, h: Hyperparameters) -> DepthWeights:
    every = gguf.get_int(gguf.arch_key("attn_res.block_size"))
    if every < 1:
        raise ModelError(f"{gguf.path}: {gguf.arch_key('attn_res.block_size')} is {every}")

    def scores(layer: int) -> tuple[Tensor, Tensor]:
        b = f"blk.{layer}."
        return (
            _required(source, f"{b}attn_res_score.weight"),
            _required(source, f"{b}ffn_res_score.weight"),
        )

    end = _required(source, "output_res_score.weight")
    return DepthWeights(every, tuple(scores(i) for i in range(h.n_layers)), end, h.eps)


class Depth:
    """The sum since the last checkpoint, and the checkpoints."""

    def __init__(self, weights: DepthWeights, context: Context, stream: Tensor) -> None:
        workspace, n = context.workspace, -(-len(weights.scores) // weights.every)
        self._w, self._stream = weights, stream
        self._sum = workspace.rows("sum since checkpoint", stream.shape[1])
        self._bank = workspace.tensor("checkpoints", n, *stream.shape)

    def start(self, step: Step) -> None:
        _copy(step, self._stream, self._sum)

    def enter(self, step: Step, layer: int, sublayer: int) -> None:
        n = self._banked(layer, sublayer)
        if n:
            self._mix(step, n, self._w.scores[layer][sublayer])
        else:
            _copy(step, self._sum, self._stream)
        if self._begins(layer, sublayer):
            _copy(step, self._sum, self._bank, n * self._sum.shape[0] * self._sum.shape[1])

    def leave(self, step: Step, layer: int, sublayer: int) -> None:
        begins = self._begins(layer, sublayer)
        combine(step.tape, self._stream, self._sum, add=not begins)

    def finish(self, step: Step) -> None:
        self._mix(step, self._bank.shape[0], self._w.end)

    def _begins(self, layer: int, sublayer: int) -> bool:
        return sublayer == 0 and layer % self._w.every == 0

    def _banked(self, layer: int, sublayer: int) -> int:
        """Checkpoints that there are before this sublayer."""
        return layer // self._w.every + (not (sublayer == 0 and layer % self._w.every == 0))

    def _mix(self, step: Step, n: int, weight: Tensor) -> None:
        mix_depth(step.tape, self._bank, n, self._sum, weight, self._w.eps, self._stream)


@dataclass(frozen=True, slots=True)
class CyclesWeights:
    """HRM (https://arxiv.org/abs/2506.21734): a low stack of layers runs ``low`` times, then a
    high one once, and that ``high`` times; each reads the sum of both states."""

    initial: Matrix  # the low state's
    per_stack: int
    low: int
    high: int

    def build(self, context: Context, stream: Tensor) -> Cycles:
        return Cycles(self, context, stream)


class Cycles:
    """The two states, and the stream of the stack that runs. A layer of the model is one run
    through a layer of the file."""

    def __init__(self, weights: CyclesWeights, context: Context, stream: Tensor) -> None:
        workspace, n = context.workspace, stream.shape[1]
        self._w, self._c, self._stream = weights, context, stream
        self._low, self._high = workspace.rows("low state", n), workspace.rows("high state", n)
        self._inside = workspace.rows("stack", n)
        self._zeros = zeros(context.device, (workspace.n_tokens,), np.int32)

    def start(self, step: Step) -> None:
        _copy(step, self._stream, self._high)
        embed(step.tape, self._w.initial, self._zeros, self._low)

    def enter(self, step: Step, layer: int, sublayer: int) -> None:
        if sublayer == 0 and layer % self._w.per_stack == 0:
            combine(step.tape, self._high, self._inside, extra=self._low)
        _copy(step, self._inside, self._stream)

    def leave(self, step: Step, layer: int, sublayer: int) -> None:
        combine(step.tape, self._stream, self._inside, add=True)
        if sublayer == 1 and (layer + 1) % self._w.per_stack == 0:
            stack = layer // self._w.per_stack % (self._w.low + 1)
            state = self._low if stack < self._w.low else self._high
            weights = NormWeights(None, self._c.h.eps, weightless=True)
            norm(step.tape, self._inside, weights, Activations(state.shape[1], state))

    def finish(self, step: Step) -> None:
        _copy(step, self._high, self._stream)


@dataclass(frozen=True, slots=True)
class NormedWeights:
    """MiniMax-01: a sublayer's output is added to what it has read, which is the normalized
    stream, times ``scale``."""

    norms: tuple[tuple[NormWeights, NormWeights], ...]
    scale: float

    def build(self, context: Context, stream: Tensor) -> Normed:
        return Normed(self, context, stream)


def _load_normed(source: TensorSource, gguf: GGUFFile, h: Hyperparameters) -> NormedWeights:
    def weights(name: str) -> NormWeights:
        return NormWeights(_required(source, f"{name}.weight"), h.eps)

    layers = range(h.n_layers)
    return NormedWeights(
        tuple((weights(f"blk.{i}.attn_norm"), weights(f"blk.{i}.ffn_norm")) for i in layers),
        gguf.get_float(gguf.arch_key("residual_scale")),
    )


class Normed:
    """The stream, which is normalized for good."""

    def __init__(self, weights: NormedWeights, context: Context, stream: Tensor) -> None:
        self._w, self._stream = weights, stream
        self._sum = context.workspace.rows("normed stream", stream.shape[1])

    def start(self, step: Step) -> None:
        _copy(step, self._stream, self._sum)

    def enter(self, step: Step, layer: int, sublayer: int) -> None:
        _copy(step, self._sum, self._stream)

    def leave(self, step: Step, layer: int, sublayer: int) -> None:
        here = Activations(self._sum.shape[1], self._sum)
        norm(step.tape, self._sum, self._w.norms[layer][sublayer], here)
        combine(step.tape, self._sum, self._sum, scale=self._w.scale)
        combine(step.tape, self._stream, self._sum, add=True)

    def finish(self, step: Step) -> None:
        _copy(step, self._sum, self._stream)
