"""The verbs of the language that mixers and FFNs are written in: rows in, rows out.

A verb notes a launch (recorder.py) and yields the rows that it will write. Nothing here decides on
memory, on forms of activations or on where a result goes.
"""

from __future__ import annotations

from collections.abc import Sequence

from gguf_serve.engine.recording.image_experts import rows_by_kind
from gguf_serve.engine.recording.low_rank import LowRankMatrices
from gguf_serve.engine.recording.recorder import Recorder
from gguf_serve.engine.recording.rows import Emission, Rows
from gguf_serve.engine.recording.tensors import Linear
from gguf_serve.kernels.matrix.activate import Xielu, activate, activate_glu
from gguf_serve.kernels.matrix.lowrank import scale_columns
from gguf_serve.kernels.matrix.matmul import fuses_quantization, glu, matmul
from gguf_serve.kernels.matrix.moe import combine
from gguf_serve.kernels.opencl.tape import ADAPTED
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.quantization.packing import BLOCK
from gguf_serve.kernels.rows.norm import COPY, NormWeights, norm
from gguf_serve.kernels.rows.sparsify import sparsify


class Verbs(Recorder):
    """What every kind of layer does."""

    def linear(
        self,
        x: Rows,
        layers: Linear | Sequence[Linear],
        *,
        scale: float = 1.0,
        add_to: Rows | None = None,
        into: Rows | None = None,
    ) -> Rows:
        """(W x + b) * scale; of several matrices that read x the outputs side by side. Added to
        other rows, or written to columns of others, if these are given."""
        parts = (layers,) if isinstance(layers, Linear) else layers
        x = self._whole(x)
        width = sum(part.matrix.n_rows for part in parts)
        out = add_to or into or self.rows(width, n=x.n)
        for part in parts:
            self._matrix(x, part, out, scale, add=add_to is not None)
        return out

    def output(self, x: Rows, layer: Linear) -> Rows:
        """What the sublayer adds to the residual stream."""
        return self.linear(x, layer, scale=self.h.residual_scale)

    def through(self, x: Rows, layers: Sequence[Linear]) -> Rows:
        """One matrix after the other."""
        for layer in layers:
            x = self.linear(x, layer)
        return x

    def _matrix(self, x: Rows, part: Linear, out: Rows, scale: float, *, add: bool) -> None:
        by_kind = part.matrix.n_experts > 1  # text's and images'

        def run(e: Emission) -> None:
            target, adds = e.target(out, add=add)
            matmul(
                e.tape, part.matrix, e.operand(x), target, e.counts, tile=e.tile, add=adds,
                bias=part.bias, out_offset=out.at + part.offset, scale=scale * part.scale,
                experts=rows_by_kind(e.step, e.context) if by_kind else None,
            )  # fmt: skip

        self.launch(run, operands=[(x, part)], writes=[out], can_add=True)
        low = part.low_rank
        if low is None or self.context.inputs.adapter_scales is None:
            return
        narrow = self.rows(low.a.n_rows)

        def down(e: Emission) -> None:
            with e.tape.only_if(ADAPTED):
                matmul(e.tape, low.a, e.operand(x), e.floats(narrow), e.counts, tile=e.tile)

        self.launch(down, operands=[(x, part)], writes=[narrow])
        self.adapt(narrow, low, out, out.at + part.offset, scale)

    def adapt(
        self, narrow: Rows, low: LowRankMatrices, out: Rows, offset: int, scale: float
    ) -> None:
        """Add the updates of the adapters that are loaded: the second of two narrow products, with
        each token's scales between them."""

        def run(e: Emission) -> None:
            scales, x = e.inputs.adapter_scales, e.floats(narrow)
            assert scales is not None
            target, _ = e.target(out)
            with e.tape.only_if(ADAPTED):
                scale_columns(e.tape, x, scales, low.owner)
                matmul(
                    e.tape, low.b, Activations(narrow.width, x), target, e.counts, tile=e.tile,
                    add=True, out_offset=offset, scale=scale,
                )  # fmt: skip

        self.launch(run, reads=[narrow], writes=[narrow, out], can_add=True)

    def glu(self, x: Rows, pair: Linear, activation: str, limit: float = 0.0) -> Rows:
        """activation(gate x) * (up x) for a matrix of both; ``limit`` bounds the factors."""
        x = self._whole(x)
        out = self._glu_rows(pair, n=x.n)

        def run(e: Emission) -> None:
            glu(
                e.tape, pair.matrix, e.operand(x), e.operand(out), e.counts,
                activation=activation, tile=e.tile, bias=pair.bias, limit=limit,
            )  # fmt: skip

        self.launch(run, operands=[(x, pair)], writes=[out], writes_forms=True)
        return out

    def _glu_rows(self, pair: Linear, times: int = 1, n: int | None = None) -> Rows:
        out = self.rows(pair.matrix.n_rows // 2, times, n=n)
        if not fuses_quantization(self.device, pair.matrix):
            out.value.floats = True  # to be made integers of
        return out

    def gated(self, gate: Rows, up: Rows, activation: str, limit: float = 0.0) -> Rows:
        """activation(gate) * up."""
        times = gate.value.times
        out = self.rows(gate.width, times, n=gate.n)

        def run(e: Emission) -> None:
            activate_glu(
                e.tape, e.floats(gate), e.floats(up), e.operand(out), activation=activation,
                gate_at=gate.at, up_at=up.at, limit=limit, times=times,
            )  # fmt: skip

        self.launch(run, reads=[gate, up], writes=[out], writes_forms=True, over=gate)
        return out

    def _whole(self, x: Rows) -> Rows:
        """Rows that a matrix can read: columns of others, or blocks that go over the end of a row,
        are copied."""
        fits = x.row == x.value.width or x.value.width % BLOCK == 0
        return x if x.width == x.row and fits else self.norm(x, COPY)

    def norm(self, x: Rows, weights: NormWeights, *, groups: int = 1) -> Rows:
        """Each row normalized, or each of ``groups`` equal parts of it by itself."""
        if weights.is_copy and x.is_whole:
            return x
        n = x.heads
        out = self.rows(x.width * n, x.value.times, n=x.n)

        def run(e: Emission) -> None:
            made, (count, rows) = e.operand(out), e.gathered
            if n > 1:
                made = Activations(x.width, e.floats(out.by_head(n)))
            norm(
                e.tape, e.floats(x), weights, made, offset=x.at, groups=groups,
                times=n * x.value.times, post=e.post, rows=rows, count=count,
            )  # fmt: skip

        whole = x.is_whole and groups == x.value.times == 1
        self.launch(
            run, reads=[x], writes=[out], writes_forms=n == 1, normed=True,
            norm=weights if whole else None, over=x if x.is_whole or n > 1 else None,
        )  # fmt: skip
        return out

    def copied(self, x: Rows) -> Rows:
        """The same rows once more."""
        out = self.rows(x.width, n=x.n)

        def run(e: Emission) -> None:
            norm(e.tape, e.floats(x), COPY, e.operand(out), post=e.post)

        self.launch(run, reads=[x], writes=[out], writes_forms=True, norm=COPY)
        return out

    def normalize(self, x: Rows, weights: NormWeights, *, groups: int = 1) -> None:
        """Normalize columns of rows in place."""

        def run(e: Emission) -> None:
            rows = e.floats(x)
            norm(
                e.tape, rows, weights, Activations(x.width, rows), offset=x.at, out_offset=x.at,
                groups=groups,
            )  # fmt: skip

        self.launch(run, reads=[x], writes=[x])

    def activate(
        self,
        x: Rows,
        activation: str,
        *,
        times: Rows | None = None,
        divisors: Tensor | None = None,
        xielu: Xielu | None = None,
    ) -> Rows:
        """activation(x), times other rows: those may have several values for each of x. Divided
        by a number for each column. ``xielu``: the numbers of that activation."""
        wide, n = times or x, x.value.times
        out = self.rows(wide.width, n, n=x.n)

        def run(e: Emission) -> None:
            activate(
                e.tape, e.floats(x), e.operand(out), activation=activation, x_at=x.at,
                repeat=wide.width // x.width, y=None if times is None else e.floats(times),
                y_at=0 if times is None else times.at, divisors=divisors, times=n,
                xielu=xielu,
            )  # fmt: skip

        reads = [x] if times is None else [x, times]
        self.launch(run, reads=reads, writes=[out], writes_forms=True, over=wide)
        return out

    def sparsify(self, x: Rows, cutoff: float, *, sample: bool) -> None:
        """Keep what is more than so many deviations above a row's mean, in place."""

        def run(e: Emission) -> None:
            sparsify(e.tape, e.floats(x), x.width, cutoff, offset=x.at, sample=sample)

        self.launch(run, reads=[x], writes=[x])

    def add(self, x: Rows, y: Rows, *, scale: float = 1.0) -> Rows:
        """x + y * scale."""
        out = self.rows(x.width, x.value.times, n=x.n)

        def run(e: Emission) -> None:
            if scale == 1.0 and e.is_over(y, out):
                combine(e.tape, e.floats(x), e.floats(out), add=True)
            else:
                combine(e.tape, e.floats(y), carried(e, x, out), scale=scale, add=True)

        addend = y if scale == 1.0 else None
        self.launch(run, reads=[x, y], writes=[out], over=x, addend=addend)
        return out

    def scaled(self, x: Rows, scale: float) -> Rows:
        """x * scale."""
        out = self.rows(x.width, x.value.times, n=x.n)

        def run(e: Emission) -> None:
            combine(e.tape, e.floats(x), e.floats(out), scale=scale)

        self.launch(run, reads=[x], writes=[out], over=x)
        return out


def carried(e: Emission, x: Rows, out: Rows) -> Tensor:
    """The floats of ``out``, with those of ``x`` in them."""
    made = e.floats(out)
    if not e.is_over(x, out):
        norm(e.tape, e.floats(x), COPY, Activations(out.width, made))
    return made
