"""The gated delta rule (delta_rule_*.cl): linear attention with a matrix of state per head."""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.kernels.opencl.tape import Tape
from gguf_serve.kernels.opencl.tensor import Columns, Tensor
from gguf_serve.kernels.recurrent.columns import recurrence


class DeltaRule(Struct, frozen=True):
    """n_heads value heads of ``value`` columns, over keys of ``key`` values, ``repeat`` value
    heads to a key head: neighbours, or if ``tiled`` those that are so many apart.

    The state decays by exp(a * softplus(gate + bias)), or with ``lower`` by
    exp(lower * sigmoid(a * (gate + bias))); gates are per head, or ``gate_per_key``.
    """

    n_heads: int
    key: int
    value: int
    a: Tensor
    gate_bias: Tensor
    repeat: int = 1
    tiled: bool = False
    gate_per_key: bool = False
    lower: float = 0.0


def delta_rule(
    tape: Tape,
    rule: DeltaRule,
    q: Columns,
    k: Columns,
    v: Columns,
    beta: Columns,
    gate: Columns,
    sequences: Tensor,
    state: Tensor,
    out: Tensor,
) -> None:
    """The rule over each sequence's tokens. Q and K are RMS-normalized per head.

    state: float32 [slots, n_heads, value, key]; out: [n, n_heads * value].
    """
    if rule.key % 16:
        raise ValueError(f"keys of {rule.key} values, not a multiple of 16")
    flags = {
        "TILED": rule.tiled, "GATE_PER_KEY": rule.gate_per_key, "SIGMOID_GATE": rule.lower != 0.0,
    }  # fmt: skip
    defines = [
        f"N_KEY={rule.key}", f"REPEAT={rule.repeat}", *(name for name, on in flags.items() if on),
    ]  # fmt: skip
    args = {
        **q.args("q"), **k.args("k"), **v.args("v"), **beta.args("beta"), **gate.args("gate"),
        "gate_bias": rule.gate_bias, "a": rule.a, "lower": rule.lower, "n_value": rule.value,
        "sequences": sequences, "state": state, "out": out,
    }  # fmt: skip
    recurrence(tape, "delta_rule", defines, args, rule.value, rule.n_heads)
