"""The verbs of the language that mixers and FFNs are written in: rows in, rows out.

A verb notes a launch (recorder.py) and yields the rows that it will write. Nothing here decides on
memory, on forms of activations or on where a result goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from engine.models.linear import linear
from engine.models.recorder import Emission, Recorder, Rows
from engine.models.step import Context, Step
from engine.tensors import Linear
from kernels.activate import activate
from kernels.conv import ConvWeights, conv
from kernels.delta import DeltaRule, delta_rule
from kernels.lightning import lightning
from kernels.matmul import Activations
from kernels.norm import UNCHANGED, NormWeights, norm
from kernels.scan import Columns, ScanWeights, scan
from kernels.tensor import Tensor


class Graph(Recorder):
    """What a sublayer's function is given to say what is done."""

    def linear(self, x: Rows, layers: Linear | Sequence[Linear], *, scale: float = 1.0) -> Rows:
        """(W x + b) * scale; of several matrices that read x the outputs side by side."""
        parts = (layers,) if isinstance(layers, Linear) else layers
        x = self._whole(x)
        out = self.rows(sum(part.matrix.n_rows for part in parts))
        for part in parts:
            self._matrix(x, part, out, scale)
        return out

    def output(self, x: Rows, layer: Linear) -> Rows:
        """What the sublayer adds to the residual stream."""
        return self.linear(x, layer, scale=self.h.residual_scale)

    def through(self, x: Rows, layers: Sequence[Linear]) -> Rows:
        """One matrix after the other."""
        for layer in layers:
            x = self.linear(x, layer)
        return x

    def _matrix(self, x: Rows, part: Linear, out: Rows, scale: float) -> None:
        def run(e: Emission) -> None:
            target, add = e.target(out)
            linear(
                e.step, self.context, part, e.operand(x), target, add=add, scale=scale,
                offset=part.offset,
            )  # fmt: skip

        self.launch(run, operands=[(x, part)], writes=[out])

    def _whole(self, x: Rows) -> Rows:
        """Rows that a matrix can read: columns of others are copied."""
        return x if x.width == x.value.width else self.norm(x, UNCHANGED)

    def norm(self, x: Rows, weights: NormWeights, *, groups: int = 1) -> Rows:
        """Each row normalized, or each of ``groups`` equal parts of it by itself."""
        n = x.heads
        out = self.rows(x.width * n, x.value.times)

        def run(e: Emission) -> None:
            made = e.operand(out)
            if n > 1:
                rows = e.floats(out.by_head(n))
                made = Activations(rows.shape[1], rows)
            norm(
                e.tape, e.floats(x), weights, made, offset=x.at, groups=groups,
                times=n * x.value.times,
            )  # fmt: skip

        whole = x.width == x.value.width or n > 1
        self.launch(
            run, reads=[x], writes=[out], writes_forms=n == 1, normed=True,
            over=x if whole else None,
        )  # fmt: skip
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

    def activate(self, x: Rows, activation: str, *, times: Rows | None = None) -> Rows:
        """activation(x), times other rows: those may have several values for each of x."""
        wide = times or x
        out = self.rows(wide.width)

        def run(e: Emission) -> None:
            activate(
                e.tape, e.floats(x), e.operand(out), activation=activation, x_at=x.at,
                repeat=wide.width // x.width, y=None if times is None else e.floats(times),
                y_at=0 if times is None else times.at,
            )  # fmt: skip

        reads = [x] if times is None else [x, times]
        self.launch(run, reads=reads, writes=[out], writes_forms=True, over=wide)
        return out

    def conv(
        self,
        x: Rows,
        weights: ConvWeights,
        *,
        silu: bool = False,
        gate: Rows | None = None,
        out_gate: Rows | None = None,
    ) -> Rows:
        """A causal convolution of each channel of x, or of ``gate`` times x; its output times
        ``out_gate``. Gates are columns of the same rows as x."""
        state, out = self.state(*weights.state_shape), self.rows(weights.n_channels)

        def run(e: Emission) -> None:
            conv(
                e.tape, e.floats(x), weights, self.context.inputs.sequences, state, e.floats(out),
                x_at=x.at, silu=silu, gate_at=None if gate is None else gate.at,
                out_gate_at=None if out_gate is None else out_gate.at,
            )  # fmt: skip

        self.launch(run, reads=[x], writes=[out])
        return out

    def delta_rule(
        self, rule: DeltaRule, q: Rows, k: Rows, v: Rows, beta: Rows, gate: Rows
    ) -> Rows:
        """The gated delta rule over the tokens of each sequence; see kernels/delta.py."""
        state = self.state(rule.n_heads, rule.value, rule.key)
        out = self.rows(rule.n_heads * rule.value)

        def run(e: Emission) -> None:
            delta_rule(
                e.tape, rule, _columns(e, q), _columns(e, k), _columns(e, v), _columns(e, beta),
                _columns(e, gate),
                self.context.inputs.sequences, state, e.floats(out),
            )  # fmt: skip

        self.launch(run, reads=[q, k, v, beta, gate], writes=[out])
        return out

    def lightning(self, qkv: Rows, decay: Tensor, head: int) -> Rows:
        """Linear attention whose state decays by a factor per head; see kernels/lightning.py."""
        n_heads = decay.shape[0]
        state, out = self.state(n_heads, head, head), self.rows(n_heads * head)

        def run(e: Emission) -> None:
            lightning(
                e.tape, e.floats(qkv), decay, head, self.context.inputs.sequences, state,
                e.floats(out),
            )  # fmt: skip

        self.launch(run, reads=[qkv], writes=[out])
        return out

    def scan(self, weights: ScanWeights, x: Rows, dt: Rows, b: Rows, c: Rows, z: Rows) -> Rows:
        """A selective state space over the tokens of each sequence, gated by z; see
        kernels/scan.py. B and C are columns of the same rows."""
        state = self.state(weights.n_channels, weights.n_state)
        out = self.rows(weights.n_channels)

        def run(e: Emission) -> None:
            scan(
                e.tape, weights, _columns(e, x), _columns(e, dt), e.floats(b), b.at, c.at,
                _columns(e, z), self.context.inputs.sequences, state, e.floats(out),
            )  # fmt: skip

        self.launch(run, reads=[x, dt, b, c, z], writes=[out])
        return out


def _columns(e: Emission, rows: Rows) -> Columns:
    return Columns(e.floats(rows), rows.at)


class RecordedSublayer:
    """A mixer or FFN whose function has been recorded; a Sublayer (step.py)."""

    def __init__(self, context: Context, function: Callable[[Graph, Rows], Rows]) -> None:
        self._graph = Graph(context)
        self._x = self._graph.input(context.h.n_embd)
        self._graph.finish(function(self._graph, self._x))

    @property
    def readers(self) -> Sequence[Linear]:
        return self._x.value.readers

    def prepare(self, step: Step, stream: Tensor) -> None:
        pass

    def record(self, step: Step, x: Activations, out: Tensor, *, add: bool) -> None:
        self._graph.emit(step, x, out, add=add)
