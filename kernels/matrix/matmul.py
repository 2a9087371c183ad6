"""Products of weight matrices with activations: a linear layer of a model.

The activations of quantized weights are integers of 15 or 8 bits (``Activations.quantized``),
or float on demand; those of float weights are float. simd: matmul_simd.cl for any number of
tokens. simt: matvec_simt.cl for few tokens, matmul_simt.cl for many.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.signature import Arguments
from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor, from_element
from gguf_serve.kernels.opencl.work import Work
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.quantization.packing import ROWS, SPAN
from gguf_serve.kernels.quantization.weights import Matrix
from gguf_serve.kernels.rows.norm import quantize

SIMT_TILE_TOKENS = 32
SPAN_TILE_TOKENS = 128  # that share the unpacking of weights, instead of 32 (dot_tiles.cl)
BYTE_TILE_TOKENS = 64  # the same (bytes.cl)
GLU_ACTIVATIONS = ("silu", "silu_late", "gelu", "gelu_quick", "relu", "swiglu_oai", "situ")


@dataclass(frozen=True, slots=True)
class RowGroups:
    """Row groups of a grouped matmul: which rows go through which expert, found on the device
    (moe.py).

    tiles: int32 [n, 4], (expert, first entry, entries, -) of the lists in_rows and out_rows:
    the rows of the input and the output. ``grid`` counts the tiles, ``used`` says how many
    experts a token has. weights: float32 of an output row, multiplies what the matrix yields.
    """

    tiles: Tensor
    in_rows: Tensor
    out_rows: Tensor
    grid: Per
    used: int
    weights: Tensor | None = None

    @property
    def args(self) -> Arguments:
        return {
            "tiles": self.tiles, "in_rows": self.in_rows, "out_rows": self.out_rows,
            "weights_of": self.weights,
        }  # fmt: skip

    def weighted(self, weights: Tensor) -> RowGroups:
        """The same rows with weights."""
        return replace(self, weights=weights)


def _inputs(device: Device, w: Matrix, x: Activations) -> tuple[Arguments, list[str]]:
    if x.n_cols != w.n_cols:
        raise ValueError(f"activations of {x.n_cols} columns for a matrix of {w.n_cols}")
    if not w.is_float and x.codes is not None and x.scales is not None:
        if x.bytes:
            if not device.is_simd or not w.type.takes_bytes:
                raise ValueError(f"{w.type.name} weights need activations of more than 8 bits")
            return {"x": x.codes, "xd": x.scales}, ["X_BYTES"]
        spans = x.spans and device.is_simd and w.type.takes_spans
        return {"x": x.codes, "xd": x.scales}, [f"X_SPAN={SPAN}"] * spans
    if x.values is None:
        raise ValueError(f"{w.type.name} weights need float activations")
    return {"x": x.values}, []


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
    scale: float = 1.0,
    experts: RowGroups | None = None,
) -> None:
    """out[t, out_offset + r] (+)= (sum_k w[r, k] x[t, k] (+ bias[r])) * scale.

    For counts[count] tokens, or for the rows and matrices that ``experts`` says. ``tile`` is
    the number of tokens that share a pass over the weights: 1 if there will never be more than
    one.
    """
    if w.paired:
        raise ValueError("a paired matrix is for glu()")
    inputs, defines = _inputs(tape.device, w, x)
    defines += [*w.defines, *["ADD"] * add]
    for row, part in w.parts:
        args = {
            **_part_args(part, inputs, counts, count, experts, bias, row),
            "scale": None if scale == 1.0 else scale, "out": out, "out_stride": out.shape[-1],
            "out_offset": out_offset + row,
        }  # fmt: skip
        whole = out_offset == 0 and part.n_rows == out.shape[-1] and count == TOKENS
        _launch(
            tape, part, [*defines], args, tile, count, unit=1, experts=experts,
            out=out if whole else None,
        )  # fmt: skip


def _part_args(
    part: Matrix,
    inputs: Arguments,
    counts: Tensor,
    count: int,
    experts: RowGroups | None,
    bias: Tensor | None,
    row: int,
) -> Arguments:
    """All but the output; the biases of a slab's rows lie together, whatever the expert."""
    return {
        "w": part, "scales_at": part.scales_at, **inputs, "n_blocks": part.n_blocks,
        "n_rows": part.n_rows, "counts": counts, "count_at": count,
        **(experts.args if experts else {}),
        "bias": None if bias is None else from_element(bias, row * part.n_experts),
    }  # fmt: skip


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
    limit: float = 0.0,
    experts: RowGroups | None = None,
) -> None:
    """out = activation(gate x) * (up x) for a paired matrix of gate and up.

    ``bias`` has the order of the packed rows: 16 of gate, 16 of up, padded to 64. ``limit``
    bounds both factors, if it is not 0. ``experts``: see matmul().

    ``out`` is float, or quantized, or both; where ``fuses_quantization`` is not true there must
    be room for the floats (``values``), and quantizing is a launch of its own.
    """
    if not w.paired or out.n_cols * 2 != w.n_rows:
        raise ValueError(f"glu of {w.n_rows} rows into {out.n_cols} columns")
    inputs, defines = _inputs(tape.device, w, x)
    defines += [*w.defines, *glu_defines(activation, limit)]
    fused = fuses_quantization(tape.device, w) and out.values is None
    if fused:
        defines += out.code_defines
    for row, part in w.parts:
        args = {
            **_part_args(part, inputs, counts, count, experts, bias, row),
            **_glu_outputs(out, row // 2, fused=fused),
        }
        _launch(tape, part, [*defines], args, tile, count, unit=2, experts=experts)
    if out.quantized and not fused:
        quantize(tape, out, count=count, times=experts.used if experts else 1)


def fuses_quantization(device: Device, w: Matrix) -> bool:
    """Whether glu can write integer activations without room for floats."""
    return device.is_simd and not w.slabs


def _glu_outputs(out: Activations, offset: int, *, fused: bool) -> Arguments:
    if fused:
        return {"out_q": out.codes, "out_d": out.scales}
    if out.values is None:
        raise ValueError("glu on this device needs room for float values")
    return {"out": out.values, "out_stride": out.n_cols, "out_offset": offset}


def glu_defines(activation: str, limit: float) -> list[str]:
    """How activation.cl calls a gated activation; ValueError for an unknown one."""
    if activation not in GLU_ACTIVATIONS:
        raise ValueError(f"unknown GLU activation {activation!r}: {GLU_ACTIVATIONS}")
    return [f"GLU_{activation.upper()}", *([f"GLU_LIMIT={limit!r}f"] if limit else [])]


def _launch(
    tape: Tape,
    w: Matrix,
    defines: list[str],
    args: Arguments,
    tile: int,
    count: int,
    unit: int,
    experts: RowGroups | None,
    out: Tensor | None = None,
) -> None:
    """``out``: float rows of which this launch writes all columns."""
    used = experts.used if experts else 1
    share = min(used, w.n_experts) / w.n_experts
    work = Work(int(w.n_bytes * share), macs=w.n_rows * w.n_cols * used, count=count)
    tiles, tuning = experts.grid if experts else Per(count, tile), tape.device.tuning
    if tape.device.is_simd:
        one = not experts and tile == 1
        if tile >= 32 and not experts:
            if "X_BYTES" in defines:
                tile = BYTE_TILE_TOKENS
            elif f"X_SPAN={SPAN}" in defines:
                tile = SPAN_TILE_TOKENS
            tiles = Per(count, tile)
        grid = (_simd_ranges(tape.device, w, tile, unit, used), 1 if one else tiles)
        defines += [f"NT={tile}", f"PREFETCH_BYTES={tuning.prefetch}"]
        tape.add(
            "matrix/matmul_simd.cl", "matmul", defines, args, grid, (1, 1), work,
            writes=out if one and out is not None else None,
        )  # fmt: skip
    elif tile < SIMT_TILE_TOKENS:
        defines += [f"NT={tile}", f"SLICES={tuning.slices}"]
        groups = -(-w.n_groups // unit)
        grid = (groups * ROWS * tuning.slices, tiles)
        tape.add(
            "matrix/matvec_simt.cl", "matmul", defines, args, grid, (ROWS * tuning.slices, 1), work
        )
    else:
        grid = (-(-w.n_groups // 4) * 64, tiles)
        tape.add("matrix/matmul_simt.cl", "matmul", defines, args, grid, (64, 1), work)


def _simd_ranges(device: Device, w: Matrix, tile: int, unit: int, used: int) -> int:
    """Row ranges: a few per core for one token, smaller ones where tokens multiply them."""
    units = -(-w.n_rows // (ROWS * (4 if unit == 2 else 1)))
    if tile == 1:
        return min(units, max(device.info.compute_units * device.tuning.ranges // used, 1))
    return max(min(units, device.info.compute_units * 2), units // 4)
