"""Verbs of layers that keep a state per sequence: convolutions and recurrences."""

from __future__ import annotations

from gguf_serve.engine.recording.rows import Emission, Rows
from gguf_serve.engine.recording.verbs import Verbs
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.recurrent.conv import ConvWeights, conv
from gguf_serve.kernels.recurrent.delta import DeltaRule, delta_rule
from gguf_serve.kernels.recurrent.lightning import lightning
from gguf_serve.kernels.recurrent.scan import Columns, ScanWeights, scan


class StateVerbs(Verbs):
    """Their states are slots' rows, kept from step to step."""

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
                e.tape, e.floats(x), weights, e.inputs.sequences, state, e.floats(out),
                x_at=x.at, silu=silu, gate_at=None if gate is None else gate.at,
                out_gate_at=None if out_gate is None else out_gate.at,
            )  # fmt: skip

        self.launch(run, reads=[x], writes=[out], mixes=True)
        return out

    def delta_rule(
        self, rule: DeltaRule, q: Rows, k: Rows, v: Rows, beta: Rows, gate: Rows
    ) -> Rows:
        """The gated delta rule over the tokens of each sequence; see kernels/recurrent/delta.py."""
        state = self.state(rule.n_heads, rule.value, rule.key)
        out = self.rows(rule.n_heads * rule.value)

        def run(e: Emission) -> None:
            delta_rule(
                e.tape, rule, _columns(e, q), _columns(e, k), _columns(e, v), _columns(e, beta),
                _columns(e, gate),
                e.inputs.sequences, state, e.floats(out),
            )  # fmt: skip

        self.launch(run, reads=[q, k, v, beta, gate], writes=[out], mixes=True)
        return out

    def lightning(self, qkv: Rows, decay: Tensor, head: int) -> Rows:
        """Linear attention whose state decays by a factor per head; see
        kernels/recurrent/lightning.py."""
        n_heads = decay.shape[0]
        state, out = self.state(n_heads, head, head), self.rows(n_heads * head)

        def run(e: Emission) -> None:
            lightning(
                e.tape, e.floats(qkv), decay, head, e.inputs.sequences, state,
                e.floats(out),
            )  # fmt: skip

        self.launch(run, reads=[qkv], writes=[out], mixes=True)
        return out

    def scan(self, weights: ScanWeights, x: Rows, dt: Rows, b: Rows, c: Rows, z: Rows) -> Rows:
        """A selective state space over the tokens of each sequence, gated by z; see
        kernels/recurrent/scan.py. B and C are columns of the same rows."""
        state = self.state(weights.n_channels, weights.n_state)
        out = self.rows(weights.n_channels)

        def run(e: Emission) -> None:
            scan(
                e.tape, weights, _columns(e, x), _columns(e, dt), e.floats(b), b.at, c.at,
                _columns(e, z), e.inputs.sequences, state, e.floats(out),
            )  # fmt: skip

        self.launch(run, reads=[x, dt, b, c, z], writes=[out], mixes=True)
        return out


def _columns(e: Emission, rows: Rows) -> Columns:
    return Columns(e.floats(rows), rows.at)
