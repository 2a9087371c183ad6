"""Hyper-connections: a model with several residual streams instead of one.

Each sublayer reads a mixture of the streams and yields what is added to all of them, by factors
that a matrix finds from the streams themselves: mHC (https://arxiv.org/abs/2512.24880) with
doubly stochastic mixing, the same without mixing, and a variant with gates of low rank.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.layers.ngram_embedding import (
    NGramEmbedding,
    NGramWeights,
    load_ngram_embedding,
)
from gguf_serve.engine.recording.step import Context, Step
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.matrix.activate import activate
from gguf_serve.kernels.matrix.matmul import matmul
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.rows.hyper import (
    Mixing,
    coefficients,
    distribute,
    gated_mean,
    injection,
    n_coefficients,
    reduce,
    spread,
)
from gguf_serve.kernels.rows.norm import NormWeights, norm

SUBLAYERS = ("attn", "ffn")


@dataclass(frozen=True, slots=True)
class Mixer:
    """Logits from all streams together, and what becomes of them."""

    fn: Linear
    mixing: Mixing


@dataclass(frozen=True, slots=True)
class HyperWeights:
    """``mixers``: of each layer's two sublayers; ``end`` None: the mean of the streams."""

    count: int
    eps: float  # of the norm of all streams together
    mixers: tuple[tuple[Mixer, ...], ...]
    end: Mixer | None

    def build(self, context: Context, stream: Tensor) -> Hyper:
        return Hyper(self, context, stream)


def load_hyper(source: TensorSource, gguf: GGUFFile, h: Hyperparameters) -> HyperWeights:
    """The hyper-connections of a model; ModelError for what is missing or does not fit."""
    count = stream_count(gguf)
    eps = gguf.get_float(gguf.arch_key("hyper_connection.epsilon"))
    magnitude = gguf.get_float(gguf.arch_key("hyper_connection.magnitude"), 2.0)
    iterations = gguf.get_int(gguf.arch_key("hyper_connection.sinkhorn_iterations"), 0)

    def mixer(name: str, *sizes: int) -> Mixer:
        fn = source.linear(f"{name}_fn", count * h.n_embd)
        base, scale = (source.vector(f"{name}_{x}.weight") for x in ("base", "scale"))
        rows = fn.matrix.n_rows
        if base is None or scale is None or rows not in sizes or base.shape != (rows,):
            raise ModelError(f"{gguf.path}: {name}_fn, _base and _scale are missing or do not fit")
        independent = rows == 2 * count
        return Mixer(
            fn, Mixing(base, scale, eps, magnitude, eps if independent else 0.0, iterations)
        )

    sizes = 2 * count, n_coefficients(count)
    return HyperWeights(
        count=count,
        eps=h.eps,
        mixers=tuple(
            tuple(mixer(f"blk.{i}.hc_{name}", *sizes) for name in SUBLAYERS)
            for i in range(h.n_layers)
        ),
        end=mixer("output_hc", count) if source.has("output_hc_fn.weight") else None,
    )


def stream_count(gguf: GGUFFile) -> int:
    """How many residual streams there are; ModelError if that cannot be."""
    count = gguf.get_int(gguf.arch_key("hyper_connection.count"))
    if not 1 < count <= 16:
        raise ModelError(f"{gguf.path}: hyper_connection.count is {count}")
    return count


class Hyper:
    """The streams, and the ways from and to the one that sublayers know."""

    def __init__(self, weights: HyperWeights, context: Context, stream: Tensor):
        workspace, n = context.workspace, weights.count
        self._w, self._c, self._stream = weights, context, stream
        self._streams = workspace.rows("streams", n * stream.shape[1])
        mixers = [m for pair in weights.mixers for m in pair]
        mixers += [] if weights.end is None else [weights.end]
        self._normed = workspace.activations("streams normed", [m.fn for m in mixers])
        self._factors = workspace.rows("stream factors", n_coefficients(n))

    def start(self, step: Step) -> None:
        spread(step.tape, self._stream, self._w.count, self._streams)

    def enter(self, step: Step, layer: int, sublayer: int) -> None:
        self._gather(step, self._w.mixers[layer][sublayer])

    def leave(self, step: Step, layer: int, sublayer: int) -> None:
        rows = self._w.mixers[layer][sublayer].fn.matrix.n_rows
        distribute(
            step.tape, self._stream, self._factors, self._w.count, self._streams,
            mix=rows == n_coefficients(self._w.count),
        )  # fmt: skip

    def finish(self, step: Step) -> None:
        if self._w.end is None:
            reduce(step.tape, self._streams, None, self._w.count, self._stream)
        else:
            self._gather(step, self._w.end)

    def _gather(self, step: Step, mixer: Mixer) -> None:
        """The factors of this place, and by them one stream of the several."""
        tape, n, fn = step.tape, self._w.count, mixer.fn.matrix
        logits = self._c.workspace.rows("stream logits", fn.n_rows)
        norm(tape, self._streams, NormWeights(None, self._w.eps, weightless=True), self._normed)
        matmul(tape, fn, self._normed, logits, self._c.inputs.counts, tile=step.tile)
        coefficients(tape, logits, mixer.mixing, n, self._factors)
        reduce(tape, self._streams, self._factors, n, self._stream)


@dataclass(frozen=True, slots=True)
class GatedMixer:
    """A norm of each stream, a gate of low rank, and logits of the factors afterwards."""

    norm: NormWeights
    down: Linear
    up: Linear
    inject: Linear | None


@dataclass(frozen=True, slots=True)
class GatedHyperWeights:
    """Qwen4's hyper-connections: their norms are those before sublayers and at the end."""

    count: int
    ngrams: NGramWeights | None
    mixers: tuple[tuple[GatedMixer, ...], ...]
    end: GatedMixer

    def build(self, context: Context, stream: Tensor) -> GatedHyper:
        return GatedHyper(self, context, stream)


def load_gated_hyper(source: TensorSource, gguf: GGUFFile, h: Hyperparameters) -> GatedHyperWeights:
    """Hyper-connections with gates; ModelError for what is missing or does not fit."""
    count = stream_count(gguf)
    width = count * h.n_embd

    def mixer(name: str) -> GatedMixer:
        weight = source.vector(f"{name}_norm.weight")
        if weight is None or weight.shape != (width,):
            raise ModelError(f"{gguf.path}: tensor {name}_norm.weight is missing or not {width}")
        down, up = source.linear(f"{name}_down", width), source.linear(f"{name}_up")
        source.check_rows(f"{name}_up.weight", width)
        return GatedMixer(
            NormWeights(weight, h.eps), down, up, source.optional_linear(f"{name}_inject")
        )

    return GatedHyperWeights(
        count,
        load_ngram_embedding(source, gguf, h, count),
        tuple(tuple(mixer(f"blk.{i}.hc_{name}") for name in SUBLAYERS) for i in range(h.n_layers)),
        mixer("output_hc"),
    )


class GatedHyper:
    """The streams of such a model."""

    def __init__(self, weights: GatedHyperWeights, context: Context, stream: Tensor):
        workspace, n, first = context.workspace, weights.count, weights.end
        self._w, self._c, self._stream = weights, context, stream
        self._ngrams = None if weights.ngrams is None else NGramEmbedding(
            weights.ngrams, context, n
        )  # fmt: skip
        self._streams = workspace.rows("streams", n * stream.shape[1])
        mixers = [m for pair in (*weights.mixers, (first,)) for m in pair]
        readers = [m.down for m in mixers] + [m.inject for m in mixers if m.inject is not None]
        self._normed = workspace.activations("streams normed", readers, floats=True)
        self._low = workspace.rows("stream gate low", first.down.matrix.n_rows)
        self._low_out = workspace.activations("stream gate low read", [m.up for m in mixers])
        self._gate = workspace.rows("stream gate", n * stream.shape[1])
        self._logits = workspace.rows("stream logits", n)
        self._factors = workspace.rows("stream factors", n_coefficients(n))

    def start(self, step: Step) -> None:
        spread(step.tape, self._stream, self._w.count, self._streams)

    def enter(self, step: Step, layer: int, sublayer: int) -> None:
        if self._ngrams is not None and sublayer == 0:
            self._ngrams.record(step, layer, self._streams)
        self._gather(step, self._w.mixers[layer][sublayer])

    def leave(self, step: Step, layer: int, sublayer: int) -> None:
        n = self._w.count
        distribute(step.tape, self._stream, self._factors, n, self._streams, mix=False)

    def finish(self, step: Step) -> None:
        self._gather(step, self._w.end)

    def _gather(self, step: Step, mixer: GatedMixer) -> None:
        tape, n, normed = step.tape, self._w.count, self._normed
        norm(tape, self._streams, mixer.norm, normed, groups=n)
        self._matmul(step, mixer.down, normed, self._low, 1.0 / n)
        activate(tape, self._low, self._low_out, activation="silu")
        self._matmul(step, mixer.up, self._low_out, self._gate)
        assert normed.values is not None
        gated_mean(tape, normed.values, self._gate, n, self._stream)
        if mixer.inject is not None:
            self._matmul(step, mixer.inject, normed, self._logits)
            injection(tape, self._logits, n, self._factors)

    def _matmul(
        self, step: Step, linear: Linear, x: Activations, out: Tensor, scale: float = 1.0
    ) -> None:
        matmul(
            step.tape, linear.matrix, x, out, self._c.inputs.counts, tile=step.tile,
            scale=scale,
        )  # fmt: skip
