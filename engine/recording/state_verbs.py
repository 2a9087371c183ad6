"""Verbs of layers that keep a state per sequence: convolutions and recurrences."""

from __future__ import annotations

import numpy as np

from gguf_serve.engine.recording.rows import Emission, Rows
from gguf_serve.engine.recording.verbs import Verbs
from gguf_serve.kernels.opencl.tensor import Columns, Tensor, upload
from gguf_serve.kernels.recurrent.conv import ConvWeights, conv
from gguf_serve.kernels.recurrent.delta import DeltaRule, delta_rule
from gguf_serve.kernels.recurrent.lightning import lightning
from gguf_serve.kernels.recurrent.rwkv import (
    Removal,
    RWKV7Vectors,
    RWKVHeads,
    rwkv,
    rwkv6_decay,
    rwkv7_keys,
)
from gguf_serve.kernels.recurrent.scan import ScanWeights, scan
from gguf_serve.kernels.rows.lerp import lerp


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

    def before(self, x: Rows) -> Rows:
        """The rows of the tokens before, zeros before a sequence's first."""
        context, taps = self.context, np.array([[1], [0]], np.float32)
        weights = context.workspace.constant(
            ("the token before", x.width),
            lambda: upload(context.device, np.repeat(taps, x.width, axis=1)),
        )
        return self.conv(x, ConvWeights(weights))

    def lerp(self, x: Rows, y: Rows, *, by: Tensor | None = None, rows: Rows | None = None) -> Rows:
        """x + (y - x) * share, a share of each column, of each value, or the sum of both."""
        out, reads = self.rows(x.width), [x, y] if rows is None else [x, y, rows]

        def run(e: Emission) -> None:
            lerp(
                e.tape, _columns(e, x), _columns(e, y), e.operand(out), by=by,
                rows=None if rows is None else _columns(e, rows),
            )  # fmt: skip

        self.launch(run, reads=reads, writes=[out], writes_forms=True, over=rows)
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

    def rwkv6_decay(self, heads: RWKVHeads, decay: Rows, k: Rows | None) -> list[Rows]:
        """The decay of each key, and if keys are given those that it leaves room for; see
        kernels/recurrent/rwkv.cl."""
        widths = [heads.width] * (1 if k is None else 2)
        out = self.rows(sum(widths))

        def run(e: Emission) -> None:
            keys = None if k is None else _columns(e, k)
            rwkv6_decay(e.tape, heads, _columns(e, decay), keys, e.floats(out))

        self.launch(run, reads=[decay] if k is None else [decay, k], writes=[out])
        return out.split(*widths)

    def rwkv7_keys(
        self, heads: RWKVHeads, vectors: RWKV7Vectors, r: Rows, decay: Rows, k: Rows, rate: Rows
    ) -> list[Rows]:
        """Decay, key, what is removed from the state and what that is added to, and for each head
        the factor of a token's own value; see kernels/recurrent/rwkv.cl."""
        widths = [heads.width] * 4 + [heads.n]
        out = self.rows(sum(widths))

        def run(e: Emission) -> None:
            rwkv7_keys(
                e.tape, heads, vectors, _columns(e, r), _columns(e, decay), _columns(e, k),
                _columns(e, rate), e.floats(out),
            )  # fmt: skip

        self.launch(run, reads=[r, decay, k, rate], writes=[out])
        return out.split(*widths)

    def rwkv(
        self,
        heads: RWKVHeads,
        r: Rows,
        decay: Rows,
        k: Rows,
        v: Rows,
        *,
        removal: tuple[Rows, Rows] | None = None,
        bonus: Tensor | None = None,
        scale: float = 1.0,
    ) -> Rows:
        """RWKV's recurrence over the tokens of each sequence; see kernels/recurrent/rwkv.py."""
        state, out = self.state(heads.n, heads.size, heads.size), self.rows(heads.width)

        def run(e: Emission) -> None:
            removed = None if removal is None else Removal(*(_columns(e, x) for x in removal))
            rwkv(
                e.tape, heads, _columns(e, r), _columns(e, decay), _columns(e, k),
                _columns(e, v), e.inputs.sequences, state, e.floats(out), removal=removed,
                bonus=bonus, scale=scale,
            )  # fmt: skip

        self.launch(run, reads=[r, decay, k, v, *(removal or ())], writes=[out], mixes=True)
        return out


def _columns(e: Emission, rows: Rows) -> Columns:
    return Columns(e.floats(rows), rows.at)
