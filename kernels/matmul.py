"""Products of weight matrices with activations: a linear layer of a model.

The activations of quantized weights are integers of 15 bits (``Activations.quantized``), or
float on demand; those of float weights are float. simd: matmul_simd.cl for any number of
tokens. simt: matvec_simt.cl for few tokens, matmul_simt.cl for many.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from kernels.device import Device
from kernels.tape import TOKENS, Grid, Per, Tape
from kernels.tensor import Tensor, empty
from kernels.weights import BLOCK, ROWS, Matrix
from kernels.work import Work

SIMT_SLICES = 8
SIMT_TILE_TOKENS = 32
GLU_ACTIVATIONS = ("silu", "silu_late", "gelu", "relu", "swiglu_oai")


@dataclass(frozen=True, slots=True)
class Activations:
    """Rows of ``n_cols`` values, as floats or as integer codes with scales per 32 (or both).

    codes: int16 [n, n_cols], in -16383..16383 (activation.cl says why); scales: float32
    [n, n_cols / 32, 2], the scale and scale * sum of the codes.
    """

    n_cols: int
    values: Tensor | None = None
    codes: Tensor | None = None
    scales: Tensor | None = None

    @property
    def quantized(self) -> bool:
        return self.codes is not None


def activations(device: Device, n_rows: int, n_cols: int, *, quantized: bool) -> Activations:
    """Room for ``n_rows`` rows of activations."""
    if not quantized:
        return Activations(n_cols, values=empty(device, (n_rows, n_cols)))
    if n_cols % BLOCK:
        raise ValueError(f"{n_cols} columns cannot be quantized in blocks of {BLOCK}")
    codes = empty(device, (n_rows, n_cols), np.int16)
    return Activations(n_cols, codes=codes, scales=empty(device, (n_rows, n_cols // BLOCK, 2)))


def _inputs(w: Matrix, x: Activations) -> tuple[list[object], list[str]]:
    if x.n_cols != w.n_cols:
        raise ValueError(f"activations of {x.n_cols} columns for a matrix of {w.n_cols}")
    if not w.is_float and x.codes is not None and x.scales is not None:
        return [x.codes.buffer, x.scales.buffer], ["ACT_INT"]
    if x.values is None:
        raise ValueError(f"{w.type.name} weights need float activations")
    return [x.values.buffer], []


def matmul(
    tape: Tape,
    w: Matrix,
    x: Activations,
    out: Tensor,
    counts: Tensor,
    *,
    tile: int,
    count: int = TOKENS,
    add: bool = False,
    bias: Tensor | None = None,
    out_offset: int = 0,
) -> None:
    """out[t, out_offset + r] (+)= sum_k w[r, k] x[t, k] (+ bias[r]) for counts[count] tokens.

    ``tile`` is the number of tokens that share a pass over the weights: 1 if there will never
    be more than one.
    """
    if w.paired:
        raise ValueError("a paired matrix is for glu()")
    inputs, defines = _inputs(w, x)
    defines += [w.define] + ["ADD"] * add + ["BIAS"] * (bias is not None)
    args = [
        w.buffer, np.uint64(w.scales_at), *inputs, np.int32(w.n_blocks), np.int32(w.n_rows),
        counts.buffer, np.int32(count), *([bias.buffer] if bias is not None else []),
        out.buffer, np.int32(out.shape[-1]), np.int32(out_offset),
    ]  # fmt: skip
    _launch(tape, w, defines, args, tile, count, unit=1)


def glu(
    tape: Tape,
    w: Matrix,
    x: Activations,
    out: Activations,
    counts: Tensor,
    *,
    activation: str,
    tile: int,
    count: int = TOKENS,
    bias: Tensor | None = None,
) -> None:
    """out = activation(gate x) * (up x) for a paired matrix of gate and up.

    ``bias`` has the order of the packed rows: 16 of gate, 16 of up, padded to 64.

    ``out`` is float, or quantized, or both; the simt family needs room for the floats
    (``values``) in any case and quantizes in a launch of its own.
    """
    if not w.paired or out.n_cols * 2 != w.n_rows:
        raise ValueError(f"glu of {w.n_rows} rows into {out.n_cols} columns")
    if activation not in GLU_ACTIVATIONS:
        raise ValueError(f"unknown GLU activation {activation!r}: {GLU_ACTIVATIONS}")
    inputs, defines = _inputs(w, x)
    defines += [w.define, f"GLU_{activation.upper()}"] + ["BIAS"] * (bias is not None)
    fused = tape.device.is_simd and out.values is None
    if fused and out.codes is not None and out.scales is not None:
        defines.append("QUANTIZE_OUT")
        outputs: list[object] = [out.codes.buffer, out.scales.buffer]
    else:
        if out.values is None:
            raise ValueError("glu on this device needs room for float values")
        outputs = [out.values.buffer, np.int32(out.n_cols), np.int32(0)]
    args = [
        w.buffer, np.uint64(w.scales_at), *inputs, np.int32(w.n_blocks), np.int32(w.n_rows),
        counts.buffer, np.int32(count), *([bias.buffer] if bias is not None else []), *outputs,
    ]  # fmt: skip
    _launch(tape, w, defines, args, tile, count, unit=2)
    if out.quantized and "QUANTIZE_OUT" not in defines:
        from kernels.norm import quantize

        quantize(tape, out, count=count)


def _launch(
    tape: Tape,
    w: Matrix,
    defines: list[str],
    args: list[object],
    tile: int,
    count: int,
    unit: int,
) -> None:
    work = Work(weight_bytes=w.n_bytes, macs=w.n_rows * w.n_cols, count=count)
    if tape.device.is_simd:
        grid, local = _simd_grid(tape.device, w, tile, count, unit)
        tape.add("matmul_simd.cl", "matmul", [*defines, f"NT={tile}"], args, grid, local, work)
    elif tile < SIMT_TILE_TOKENS:
        defines += [f"NT={tile}", f"SLICES={SIMT_SLICES}"]
        groups = -(-w.n_groups // unit)
        grid = (groups * ROWS * SIMT_SLICES, Per(count, tile))
        tape.add("matvec_simt.cl", "matmul", defines, args, grid, (ROWS * SIMT_SLICES, 1), work)
    else:
        grid = (-(-w.n_groups // 4) * 64, Per(count, SIMT_TILE_TOKENS))
        tape.add("matmul_simt.cl", "matmul", defines, args, grid, (64, 1), work)


def _simd_grid(
    device: Device, w: Matrix, tile: int, count: int, unit: int
) -> tuple[Grid, tuple[int, int]]:
    """Row ranges: a few per core for one token, smaller ones where tokens multiply them."""
    units = -(-w.n_rows // (ROWS * (4 if unit == 2 else 1)))
    if tile == 1:
        ranges = min(units, device.info.compute_units * 4)
        return (ranges, 1), (1, 1)
    ranges = max(min(units, device.info.compute_units * 2), units // 4)
    return (ranges, Per(count, tile)), (1, 1)
