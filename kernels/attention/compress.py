"""Compressed keys: every so many tokens of a sequence become one (compress.cl)."""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.kernels.attention.kv import PAGE, KVShape, LayerKV
from gguf_serve.kernels.attention.rope import QKNorm
from gguf_serve.kernels.opencl.tape import SEQUENCES, TOKENS, Grid, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor

LANES = 16  # columns per work-item
SIMT_SHARES = 16  # work-items that share out the keys of a sequence


class Compression(Struct, frozen=True):
    """How ``ratio`` tokens become a key of ``width`` values.

    biases: float32 [ratio, columns], of the weights' logits; with twice as many columns as
    ``width`` the keys overlap, each with the tokens of the one before it.
    """

    ratio: int
    width: int
    biases: Tensor

    def __post_init__(self) -> None:
        columns = self.width * (2 if self.overlaps else 1)
        if self.width % LANES or self.biases.shape != (self.ratio, columns):
            raise ValueError(f"keys of {self.width} values with biases {self.biases.shape}")

    @property
    def overlaps(self) -> bool:
        return self.biases.shape[1] != self.width

    @property
    def row(self) -> int:
        """Values of a token's row: what is averaged, and the logits of the weights."""
        return 2 * self.biases.shape[1]

    @property
    def state_shape(self) -> tuple[int, int]:
        """What a sequence keeps: the rows of tokens that the next keys still need."""
        return self.ratio * (2 if self.overlaps else 1), self.row

    @property
    def defines(self) -> list[str]:
        columns = f"COLUMNS={self.biases.shape[1]}"
        return [f"RATIO={self.ratio}", columns, *["OVERLAP"] * self.overlaps]


def page_rows(ratio: int) -> int:
    """The most keys whose last token is in the same page."""
    return max(1, PAGE // ratio)


def key_shape(width: int, ratio: int) -> KVShape:
    """What is kept of keys of so many tokens; of ratio 0 there are none."""
    return KVShape(int(ratio > 0), width, width, joint=True, rows=page_rows(max(ratio, 1)))


def compress(
    tape: Tape, rows: Tensor, c: Compression, sequences: Tensor, state: Tensor, keys: Tensor
) -> None:
    """The keys that end in this step: keys[t] for the last token of each, float32 [n, width].

    rows: float32 [n, c.row]; sequences: int32 [n, 4], see compress.cl; state: float32 [slots,
    *c.state_shape].
    """
    if rows.shape[1] != c.row or keys.shape[1] != c.width or state.shape[1:] != c.state_shape:
        raise ValueError(f"rows {rows.shape}, keys {keys.shape} and state {state.shape}")
    shares, group = (1, 1) if tape.device.is_simd else (SIMT_SHARES, c.width // LANES)
    args = {"rows": rows, "sequences": sequences, "state": state}
    grid: Grid = (c.width // LANES, shares, Per(SEQUENCES))
    means = {**args, "biases": c.biases, "keys": keys}
    tape.add("attention/compress.cl", "pool", c.defines, means, grid, (group, 1, 1))
    grid = (c.row // LANES, Per(SEQUENCES))
    tape.add("attention/compress.cl", "keep", c.defines, args, grid, (group, 1))


class KeyFinish(Struct, frozen=True):
    """What becomes of a mean of tokens: a norm, and a rotation at its first token's position.

    weight: float32 [width]; frequencies: float32 [n_rot / 2], of pairs (2i, 2i + 1) of the last
    values of the key.
    """

    weight: Tensor
    eps: float
    frequencies: Tensor
    magnitude: float


def store_keys(
    tape: Tape,
    keys: Tensor,
    ratio: int,
    finish: KeyFinish,
    positions: Tensor,
    slot_mapping: Tensor,
    layer: LayerKV,
) -> None:
    """Finish the keys that end in this step (see compress) and write them to their pages.

    slot_mapping: int32 [n], page * PAGE + row of the tokens; of ``layer`` a page's rows are the
    keys whose last token is in it.
    """
    shape = layer.shape
    if not shape.joint or shape.rows != page_rows(ratio) or keys.shape[1] != shape.head:
        raise ValueError(f"keys {keys.shape} of {ratio} tokens in pages of {shape}")
    n_rot = 2 * finish.frequencies.shape[0]
    defines = [
        f"RATIO={ratio}", f"HD={shape.head}", f"HDV={shape.head}", f"N_ROT={n_rot}",
        f"ROT_AT={shape.head - n_rot}", f"PAGE={shape.rows}", f"PAGE_TOKENS={PAGE}",
        *QKNorm(finish.eps, k=finish.weight).defines(shape.head), "QK_NORM", "K_WEIGHT",
        *layer.defines,
    ]  # fmt: skip
    args = {
        "keys": keys, "weight": finish.weight, "eps": finish.eps,
        "frequencies": finish.frequencies, "magnitude": finish.magnitude, "positions": positions,
        "slot_mapping": slot_mapping, "cache": layer.v.arg,
    }  # fmt: skip
    tape.add("attention/compress.cl", "store", defines, args, (Per(TOKENS),))
