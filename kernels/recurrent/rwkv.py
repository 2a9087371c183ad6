"""RWKV's linear attention (rwkv*.cl): a matrix of state per head that decays by key."""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Columns, Tensor
from gguf_serve.kernels.recurrent.columns import recurrence


class RWKVHeads(Struct, frozen=True):
    """n_heads of ``size`` keys and as many values; ``repeat`` neighbours have one V, in RWKV-6 for
    decayed keys one K too."""

    n: int
    size: int
    repeat: int = 1

    def __post_init__(self) -> None:
        if self.size % 16 or self.n % self.repeat:
            raise ValueError(
                f"{self.n} heads of {self.size} values over {self.n // self.repeat} of K and V, "
                "expected multiples of 16 values and of these heads"
            )

    @property
    def width(self) -> int:
        return self.n * self.size

    @property
    def defines(self) -> list[str]:
        return [f"N_KEY={self.size}", f"REPEAT={self.repeat}"]


class Removal(Struct, frozen=True):
    """What the state yields for ``removed`` is taken from it along ``added``."""

    removed: Columns
    added: Columns


def rwkv(
    tape: Tape,
    heads: RWKVHeads,
    r: Columns,
    decay: Columns,
    k: Columns,
    v: Columns,
    sequences: Tensor,
    state: Tensor,
    out: Tensor,
    *,
    removal: Removal | None = None,
    bonus: Tensor | None = None,
    scale: float = 1.0,
) -> None:
    """Over each sequence's tokens; sequences int32 [n, 4] (conv.cl).

    bonus: float32 [heads.width], of a token's own key and value; state: [slots, n, size, size];
    out: [tokens, heads.width].
    """
    args: dict[str, object] = {
        **r.args("r"), **decay.args("decay"), **k.args("k"), **v.args("v"), "bonus": bonus,
        "scale": scale, "sequences": sequences, "state": state, "out": out,
    }  # fmt: skip
    if removal is not None:
        args |= {**removal.removed.args("removed"), **removal.added.args("added")}
    recurrence(tape, "rwkv", heads.defines, args, heads.size, heads.n)


def rwkv6_decay(
    tape: Tape, heads: RWKVHeads, decay: Columns, k: Columns | None, out: Tensor
) -> None:
    """out[t] = w = exp(-exp(decay[t])), and beside it k[t] * (1 - w) if keys are given."""
    args: dict[str, object] = {**decay.args("decay"), "out": out, "out_stride": out.shape[-1]}
    if k is not None:
        args |= k.args("k")
    grid = (heads.n, Per(TOKENS))
    tape.add("recurrent/rwkv.cl", "rwkv6_decay", heads.defines, args, grid)


class RWKV7Vectors(Struct, frozen=True):
    """float32 [width] each: of the removed key, of the kept key's rate, of a token's own value."""

    k_scale: Tensor
    k_rate: Tensor
    bonus: Tensor


def rwkv7_keys(
    tape: Tape,
    heads: RWKVHeads,
    vectors: RWKV7Vectors,
    r: Columns,
    decay: Columns,
    k: Columns,
    rate: Columns,
    out: Tensor,
) -> None:
    """What the recurrence reads; see rwkv.cl.

    out: float32 [tokens, 4 * heads.width + heads.n]: decay, key, removed, added, and the factor
    of each head's own value.
    """
    args = {
        **r.args("r"), **decay.args("decay"), **k.args("k"), **rate.args("rate"),
        "k_scale": vectors.k_scale, "k_rate": vectors.k_rate, "bonus": vectors.bonus, "out": out,
        "out_stride": out.shape[-1],
    }  # fmt: skip
    grid = (heads.n, Per(TOKENS))
    tape.add("recurrent/rwkv.cl", "rwkv7_keys", heads.defines, args, grid)
