"""Verbs of what is between sublayers: embeddings, several residual streams, the ends of a model."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from gguf_serve.engine.recording.low_rank import LowRankMatrices
from gguf_serve.engine.recording.rows import Emission, Rows
from gguf_serve.engine.recording.step import StepInputs
from gguf_serve.engine.recording.verbs import Verbs, carried
from gguf_serve.kernels.matrix.embed import deepstack, embed
from gguf_serve.kernels.opencl.tensor import Tensor, zeros
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.quantization.weights import Matrix
from gguf_serve.kernels.rows.depth import mix_depth
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
from gguf_serve.kernels.rows.ngram import gate_ngrams
from gguf_serve.kernels.rows.norm import COPY, norm
from gguf_serve.kernels.rows.softcap import softcap
from gguf_serve.kernels.rows.watch import watch


class StreamVerbs(Verbs):
    """Streams that lie side by side are one row of each token."""

    def embed(
        self,
        w: Matrix,
        ids: Callable[[StepInputs], Tensor | None],
        *,
        scale: float = 1.0,
        times: int = 1,
        tokens_only: bool = False,
        padded: bool = False,
        media: bool = False,
    ) -> Rows:
        """Rows of a matrix, by the step's number for each token, or by ``times`` for each and then
        side by side; see kernels.matrix.embed."""
        out = self.rows(w.n_cols * times)

        def run(e: Emission) -> None:
            rows = ids(e.inputs)
            assert rows is not None
            embed(
                e.tape, w, rows, e.floats(out.by_head(times)), scale, times=times,
                tokens_only=tokens_only, padded=padded, media=e.inputs.media if media else None,
            )  # fmt: skip

        self.launch(run, writes=[out])
        return out

    def add_embedding(self, x: Rows, w: Matrix, ids: Callable[[StepInputs], Tensor]) -> Rows:
        """x plus rows of a matrix."""
        out = self.rows(x.width)

        def run(e: Emission) -> None:
            embed(e.tape, w, ids(e.inputs), carried(e, x, out), add=True)

        self.launch(run, reads=[x], writes=[out], over=x)
        return out

    def add_row(self, x: Rows, w: Matrix) -> Rows:
        """x plus the first row of a matrix."""
        first = self._first_rows()
        return self.add_embedding(x, w, lambda inputs: first)

    def row(self, w: Matrix) -> Rows:
        """The first row of a matrix for each token."""
        first = self._first_rows()
        return self.embed(w, lambda inputs: first)

    def _first_rows(self) -> Tensor:
        context = self.context
        n = context.workspace.n_tokens
        return context.workspace.constant("zeros", lambda: zeros(context.device, (n,), np.int32))

    def adapt_embedding(self, x: Rows, low: LowRankMatrices | None, scale: float) -> None:
        """Add what adapters change of tokens' embeddings, and not of media's."""
        if low is None or self.context.inputs.adapter_scales is None:
            return
        narrow = self.embed(low.a, lambda inputs: inputs.tokens, tokens_only=True)
        self.adapt(narrow, low, x, 0, scale)

    def deepstack(self, x: Rows, w: Matrix, at: int) -> Rows:
        """x plus an encoder's embeddings from column ``at`` on; see kernels.matrix.embed."""
        out = self.rows(x.width)

        def run(e: Emission) -> None:
            assert e.inputs.media is not None
            deepstack(e.tape, w, e.inputs.tokens, e.inputs.media, at, carried(e, x, out))

        self.launch(run, reads=[x], writes=[out], over=x)
        return out

    def spread(self, x: Rows, n: int) -> Rows:
        """``n`` streams, all like x."""
        out = self.rows(n * x.width)

        def run(e: Emission) -> None:
            spread(e.tape, e.floats(x), n, e.floats(out))

        self.launch(run, reads=[x], writes=[out])
        return out

    def coefficients(self, logits: Rows, mixing: Mixing, n: int) -> Rows:
        """The factors of ``n`` streams; see kernels.rows.hyper."""
        out = self.rows(n_coefficients(n))

        def run(e: Emission) -> None:
            coefficients(e.tape, e.floats(logits), mixing, n, e.floats(out))

        self.launch(run, reads=[logits], writes=[out])
        return out

    def injection(self, logits: Rows, n: int) -> Rows:
        """The factors of what is added to ``n`` streams alone."""
        out = self.rows(n_coefficients(n))

        def run(e: Emission) -> None:
            injection(e.tape, e.floats(logits), n, e.floats(out))

        self.launch(run, reads=[logits], writes=[out])
        return out

    def reduce(self, streams: Rows, n: int, factors: Rows | None = None) -> Rows:
        """The sum of streams by their factors, or their mean."""
        out = self.rows(streams.width // n)

        def run(e: Emission) -> None:
            by = None if factors is None else e.floats(factors)
            reduce(e.tape, e.floats(streams), by, n, e.floats(out))

        self.launch(run, reads=[streams] if factors is None else [streams, factors], writes=[out])
        return out

    def gated_mean(self, streams: Rows, gate: Rows, n: int) -> Rows:
        """The mean of streams times sigmoid(gate)."""
        out = self.rows(streams.width // n)

        def run(e: Emission) -> None:
            gated_mean(e.tape, e.floats(streams), e.floats(gate), n, e.floats(out))

        self.launch(run, reads=[streams, gate], writes=[out])
        return out

    def distribute(self, streams: Rows, y: Rows, factors: Rows, n: int, *, mix: bool) -> Rows:
        """The streams, mixed or as they are, plus y times each one's factor."""
        out = self.rows(streams.width)

        def run(e: Emission) -> None:
            into = carried(e, streams, out)
            distribute(e.tape, e.floats(y), e.floats(factors), n, into, mix=mix)

        self.launch(run, reads=[streams, y, factors], writes=[out], over=streams)
        return out

    def put(self, x: Rows, bank: Rows, i: int) -> None:
        """Make x the i-th of the rows in ``bank``, which has as many of each as its value has
        times."""

        def run(e: Emission) -> None:
            rows = e.floats(x)
            at = i * rows.shape[0] * rows.shape[1]
            norm(e.tape, rows, COPY, Activations(x.width, e.floats(bank)), out_offset=at)

        self.launch(run, reads=[x], writes=[bank])

    def mix_depth(self, bank: Rows, n: int, x: Rows, weight: Tensor, eps: float) -> Rows:
        """A softmax-weighted sum of x and the first ``n`` rows in ``bank``."""
        out, times = self.rows(x.width), bank.value.times

        def run(e: Emission) -> None:
            rows = e.floats(bank)
            by_number = Tensor(rows.buffer, (times, rows.shape[0] // times, x.width), rows.dtype)
            mix_depth(e.tape, by_number, n, e.floats(x), weight, eps, e.floats(out))

        self.launch(run, reads=[bank, x], writes=[out])
        return out

    def gate_ngrams(self, key: Rows, query: Rows, value: Rows, n: int) -> Rows:
        """The value for each of ``n`` streams, gated; see kernels.rows.ngram."""
        out = self.rows(key.width)

        def run(e: Emission) -> None:
            gate_ngrams(
                e.tape, e.floats(key), e.floats(query), e.floats(value), n, e.floats(out)
            )  # fmt: skip

        self.launch(run, reads=[key, query, value], writes=[out])
        return out

    def softcap(self, x: Rows, cap: float) -> None:
        """cap * tanh(x / cap), in place, for logits."""

        def run(e: Emission) -> None:
            softcap(e.tape, e.floats(x), cap)

        self.launch(run, reads=[x], writes=[x])

    def watch(self, x: Rows, mark: int, first: Tensor) -> None:
        """Note the least mark where a value is not finite; see kernels.rows.watch."""

        def run(e: Emission) -> None:
            watch(e.tape, e.floats(x), mark, first)

        self.launch(run, reads=[x], writes=[])
