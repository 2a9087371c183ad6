"""Products of weight matrices with activations: a linear layer of a model.

The activations of quantized weights are integers of 15 or 8 bits (``Activations.quantized``),
or float on demand; those of float weights are float. Which kernel, and how it is launched:
VARIANTS.
"""

from __future__ import annotations

from typing import Literal

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.kernels.opencl.capabilities import TILE_LANES
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.signature import Arguments
from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor, from_element
from gguf_serve.kernels.opencl.variant import (
    Layout,
    Variant,
    can_quantize,
    choose,
    on_cpu,
    on_gpu,
    takes,
)
from gguf_serve.kernels.opencl.work import Work
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.quantization.packing import ROWS, SPAN
from gguf_serve.kernels.quantization.weights import Matrix
from gguf_serve.kernels.rows.norm import quantize

SIMT_TILE_TOKENS = 32
MMA_TOKENS, MMA_ITEMS = 64, 128  # of a work-group that multiplies tiles of 16 rows, at most
Form = Literal["floats", "codes", "spans", "bytes"]  # of activations, codes having 15 bits
FORM_DEFINES: dict[Form, list[str]] = {
    "floats": [], "codes": [], "spans": [f"X_SPAN={SPAN}"], "bytes": ["X_BYTES"],
}  # fmt: skip
# Tokens that share the unpacking of weights on a CPU, where it is not 32 (dot_tiles.cl, bytes.cl).
SHARED_TOKENS: dict[Form, int] = {"spans": 128, "bytes": 128}
SHARED_TOKENS_AVX2 = 64  # of bytes: one group of rows meets them, not two
GLU_ACTIVATIONS = ("silu", "silu_late", "gelu", "gelu_quick", "relu", "swiglu_oai", "situ")


class RowGroups(Struct, frozen=True):
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


def _inputs(device: Device, w: Matrix, x: Activations) -> tuple[Form, Arguments]:
    if x.n_cols != w.n_cols:
        raise ValueError(f"activations of {x.n_cols} columns for a matrix of {w.n_cols}")
    if not w.is_float and x.codes is not None and x.scales is not None:
        if x.bytes:
            if not w.type.takes_bytes or not takes(VARIANTS, device, "bytes"):
                raise ValueError(f"{w.type.name} weights need activations of more than 8 bits")
            return "bytes", {"x": x.codes, "xd": x.scales}
        spans = x.spans and w.type.takes_spans and takes(VARIANTS, device, "spans")
        return "spans" if spans else "codes", {"x": x.codes, "xd": x.scales}
    if x.values is None:
        raise ValueError(f"{w.type.name} weights need float activations")
    return "floats", {"x": x.values}


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
    form, inputs = _inputs(tape.device, w, x)
    defines = [*FORM_DEFINES[form], *w.defines, *["ADD"] * add]
    for row, part in w.parts:
        args = {
            **_part_args(part, inputs, counts, count, experts, bias, row),
            "scale": None if scale == 1.0 else scale, "out": out, "out_stride": out.shape[-1],
            "out_offset": out_offset + row,
        }  # fmt: skip
        whole = out_offset == 0 and part.n_rows == out.shape[-1] and count == TOKENS
        whole = whole and not (add and experts)
        product = Product(part, form, tile, count, experts=experts)
        _launch(tape, product, defines, args, out if whole else None)


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
    form, inputs = _inputs(tape.device, w, x)
    defines = [*FORM_DEFINES[form], *w.defines, *glu_defines(activation, limit)]
    fused = fuses_quantization(tape.device, w) and out.values is None
    if fused:
        defines += out.code_defines
    for row, part in w.parts:
        args = {
            **_part_args(part, inputs, counts, count, experts, bias, row),
            **_glu_outputs(out, row // 2, fused=fused),
        }
        product = Product(part, form, tile, count, glu=True, experts=experts)
        _launch(tape, product, defines, args)
    if out.quantized and not fused:
        quantize(tape, out, count=count, times=experts.used if experts else 1)


def fuses_quantization(device: Device, w: Matrix) -> bool:
    """Whether glu can write integer activations without room for floats."""
    return can_quantize(VARIANTS, device) and not w.slabs


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


class Product(Struct, frozen=True):
    """Products of a matrix with tokens, as kernels are chosen and laid out by.

    form: of the activations. tile: tokens that share a pass over the weights. glu: the matrix is
    paired. ``experts`` say which rows go through which matrix.
    """

    w: Matrix
    form: Form
    tile: int
    count: int
    glu: bool = False
    experts: RowGroups | None = None

    @property
    def used(self) -> int:
        """Rows of the output for each token."""
        return self.experts.used if self.experts else 1

    @property
    def is_row(self) -> bool:
        """Whether there is one token, which goes through all of the matrix."""
        return self.tile == 1 and self.experts is None

    @property
    def is_token(self) -> bool:
        """Whether there is one token, with a row of the output for each of its experts."""
        return self.tile == 1 and self.count == TOKENS and not self.glu

    def tiles(self, tile: int) -> Per:
        return self.experts.grid if self.experts else Per(self.count, tile)

    @property
    def work(self) -> Work:
        share = min(self.used, self.w.n_experts) / self.w.n_experts
        macs = self.w.n_rows * self.w.n_cols * self.used
        return Work(int(self.w.n_bytes * share), macs=macs, count=self.count)


def _vectors(device: Device, p: Product) -> Layout:
    """A work-item takes a range of rows."""
    tile = p.tile
    if p.tile >= 32 and not p.experts:
        tile = SHARED_TOKENS.get(p.form, p.tile)
        if p.form == "bytes" and not device.capabilities.multiplies_pairs:
            tile = SHARED_TOKENS_AVX2
    units = -(-p.w.n_rows // (ROWS * (4 if p.glu else 1)))
    if tile == 1:  # a few ranges per core
        cores = device.info.compute_units
        ranges = min(units, max(cores * device.tuning.ranges // p.used, 1))
    else:  # smaller ones, since tokens multiply them
        ranges = max(min(units, device.info.compute_units * 2), units // 4)
    defines = [f"NT={tile}", f"PREFETCH_BYTES={device.tuning.prefetch}"]
    return Layout(defines, (ranges, 1 if p.is_row else p.tiles(tile)), (1, 1))


def _slices(device: Device, p: Product) -> Layout:
    """A work-group takes 16 rows, its slices blocks of their columns."""
    groups, group = -(-p.w.n_groups // (2 if p.glu else 1)), ROWS * device.tuning.slices
    defines = [f"NT={p.tile}", f"SLICES={device.tuning.slices}"]
    return Layout(defines, (groups * group, p.tiles(p.tile)), (group, 1))


def _short_slices(device: Device, p: Product) -> Layout:
    """The same by instructions for products of shorts."""
    defines, grid, local = _slices(device, p)
    return Layout([device.capabilities.short_form, *defines], grid, local)


def _local_tiles(device: Device, p: Product) -> Layout:
    """A work-group takes 64 rows."""
    return Layout([], (-(-p.w.n_groups // 4) * 64, p.tiles(p.tile)), (64, 1))


def _matrix_tiles(device: Device, p: Product) -> Layout:
    """A work-group takes 64 rows, each of its subgroups two tiles of them and as many of tokens."""
    tokens = p.tile if p.experts else MMA_TOKENS
    form, n_tiles = device.capabilities.tile_form, 4 * tokens // 16
    lanes = TILE_LANES[form]
    items = min(MMA_ITEMS, lanes * n_tiles // 2)
    defines = [form, f"NT={tokens}", f"ITEMS={items}", f"TT={n_tiles * lanes // items // 2}"]
    return Layout(defines, (-(-p.w.n_groups // 4) * items, p.tiles(tokens)), (items, 1))


def _few_tokens(p: Product) -> bool:
    return p.tile < SIMT_TILE_TOKENS


def _few_codes(p: Product) -> bool:
    """Of 15 bits, with weights whose codes are bytes."""
    return p.form == "codes" and _few_tokens(p) and p.w.type.takes_bytes


def _many_codes(p: Product) -> bool:
    return p.form == "codes" and not _few_tokens(p)


def _multiplies_shorts(device: Device) -> bool:
    return on_gpu(device) and bool(device.capabilities.short_form)


def _multiplies_tiles(device: Device) -> bool:
    return on_gpu(device) and bool(device.capabilities.tile_form)


VARIANTS: tuple[Variant[Product], ...] = (
    Variant(
        "matrix/matmul_simd.cl", on_cpu, _vectors, tuned=("ranges", "prefetch"),
        forms=("spans", "bytes"), quantizes=True, extends=True,
    ),
    Variant(
        "matrix/matvec_simt.cl", _multiplies_shorts, _short_slices, _few_codes, tuned=("slices",)
    ),
    Variant("matrix/matvec_simt.cl", on_gpu, _slices, _few_tokens, tuned=("slices",)),
    Variant("matrix/matmul_mma.cl", _multiplies_tiles, _matrix_tiles, _many_codes),
    Variant("matrix/matmul_simt.cl", on_gpu, _local_tiles),
)  # fmt: skip


def _launch(
    tape: Tape,
    product: Product,
    defines: list[str],
    args: Arguments,
    out: Tensor | None = None,
) -> None:
    """``out``: float rows of which this launch writes all columns."""
    variant = choose(VARIANTS, tape.device, product)
    more, grid, local = variant.lay_out(tape.device, product)
    tape.add(
        variant.source, "matmul", [*defines, *more], args, grid, local, product.work,
        writes=out if variant.extends and product.is_token else None, slots=product.used,
    )  # fmt: skip
