"""Attention over KV pages: fused (attention_simd.cl, attention_simt.cl), or plain.

The caller cuts the step's tokens into tiles of consecutive tokens of one sequence
(``tile_queries`` says how many at most). With ``split`` (split-KV, as in flash-decoding) every
tile has one query and its keys are shared out in parts of 256, for steps that have few queries and
long contexts.
"""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.kernels.attention.kv import PAGE, KVShape, LayerKV
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.signature import Arguments
from gguf_serve.kernels.opencl.tape import PARTS, TILES, Grid, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor, empty
from gguf_serve.kernels.opencl.variant import (
    Layout,
    Variant,
    anything,
    can_quantize,
    choose,
    on_cpu,
    on_gpu,
)
from gguf_serve.kernels.opencl.work import Work
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.rows.norm import quantize

PART = 256  # keys per part (attention.cl)
ROWS_PER_ITEM = 6  # query rows that a simd work-item takes through a page together
HEADS_PER_ITEM = 16  # query heads of one KV head that a simd work-item takes at most
PLAIN_ITEMS = {"simd": 8, "simt": 1024}


class AttentionInputs(Struct, frozen=True):
    """What every layer's attention reads: buffers that the engine fills before each step."""

    tiles: Tensor  # int32 [n, 4]: first token, queries, row of tables, keys
    positions: Tensor  # int32 [n]
    tables: Tensor  # int32 [sequences, pages]
    counts: Tensor

    @property
    def paging(self) -> Arguments:
        """What says which keys a tile of tokens attends to, and where they are."""
        return {
            "tiles": self.tiles, "positions": self.positions, "tables": self.tables,
            "table_stride": self.tables.shape[1],
        }  # fmt: skip


class Mask(Struct, frozen=True):
    """Which keys a query sees, and what is done to their scores.

    window: keys that a query sees, 0 for all; softcap: of the scores, 0 for none.
    chunked: the window is the query's own stretch of so many tokens, not the last ones.
    bidirectional: keys after the query count too; the window is half before it, half after.
    together: a query sees the keys up to tile.w in any case, those after it too.
    after: of those before it, a query sees the keys from tile.w on, past: those before tile.w.
    slopes: float32 [heads], what a score loses per token of distance (ALiBi); biases: float32
    [heads, 2 * reach + 1], what it gains at a distance of -reach to reach, at longer ones as at
    these; sinks: float32
    [heads], attention sinks, the score of one more key without a value; selected: int32 [n, pages],
    bits of the keys that a token sees (indexer.py), or [n, KV heads * pages] where ``by_head``.
    """

    window: int = 0
    softcap: float = 0.0
    chunked: bool = False
    bidirectional: bool = False
    together: bool = False
    after: bool = False
    past: bool = False
    biases: Tensor | None = None
    slopes: Tensor | None = None
    sinks: Tensor | None = None
    selected: Tensor | None = None
    by_head: bool = False

    @property
    def defines(self) -> list[str]:
        flags = {
            "SOFTCAP": self.softcap, "CHUNKED": self.chunked, "BIDIRECTIONAL": self.bidirectional,
            "TOGETHER": self.together, "AFTER": self.after, "PAST": self.past,
        }  # fmt: skip
        return [name for name, on in flags.items() if on]

    @property
    def reach(self) -> int:
        """The longest distance that has a bias of its own."""
        return 0 if self.biases is None else self.biases.shape[-1] // 2

    @property
    def args(self) -> Arguments:
        words = None if self.selected is None else self.selected.shape[1]
        return {
            "window": self.window, "softcap": self.softcap, "slopes": self.slopes,
            "biases": self.biases, "reach": None if self.biases is None else self.reach,
            "sinks": self.sinks, "selected": self.selected, "n_words": words,
        }  # fmt: skip


class Scratch(Struct, frozen=True):
    """Memory between launches: partial results of parts, or rows of scores."""

    buffer: Tensor
    width: int  # parts per head, or scores per row

    @property
    def parts(self) -> Arguments:
        return {"partial": self.buffer, "max_parts": self.width}


class Heads(Struct, frozen=True):
    """What is computed for each tile, as kernels are chosen and laid out by; with ``split`` for
    each part of its keys."""

    n_heads: int
    n_kv: int
    split: bool = False

    def grid(self, items: int, group: int = 1) -> Grid:
        """So many items, of ``group`` work-items each."""
        if self.split:
            return (Per(PARTS, times=group), items, Per(TILES))
        return (items * group, Per(TILES))


def _vectors(device: Device, h: Heads) -> Layout:
    """A work-item takes the query heads of a KV head, or a share of them."""
    group = h.n_heads // h.n_kv
    share = next(s for s in range(1, group + 1) if group % s == 0 and group // s <= HEADS_PER_ITEM)
    defines = [f"G={group // share}", *([f"SHARE={share}"] if share > 1 else [])]
    return Layout(defines, h.grid(h.n_kv * share))


def _groups(device: Device, h: Heads) -> Layout:
    """A work-group takes a query head."""
    group = device.tuning.attention_group
    grid = h.grid(h.n_heads, group)
    defines = [f"G={h.n_heads // h.n_kv}", f"WG={group}"]
    return Layout(defines, grid, (group,) + (1,) * (len(grid) - 1))


def _rows(device: Device, h: Heads) -> Layout:
    """Work-items take all heads of all queries in turn."""
    return Layout([f"G={h.n_heads // h.n_kv}"], (PLAIN_ITEMS[device.family],))


FUSED: tuple[Variant[Heads], ...] = (
    Variant("attention/attention_simd.cl", on_cpu, _vectors, quantizes=True),
    Variant("attention/attention_simt.cl", on_gpu, _groups, tuned=("attention_group",)),
)
PLAIN: Variant[Heads] = Variant("attention/attention_plain.cl", anything, _rows)


def tile_queries(device: Device, n_heads: int, n_kv: int, *, plain: bool = False) -> int:
    """The most queries that a tile of a prompt may have."""
    if plain or not device.is_simd:
        return 1
    return max(1, ROWS_PER_ITEM * n_kv // n_heads)


def fuses_quantization(device: Device, head_v: int, *, plain: bool) -> bool:
    """Whether attention can write integer activations without room for floats."""
    return can_quantize(FUSED, device) and head_v % 32 == 0 and not plain


def split_scratch(
    device: Device, n_tiles: int, n_heads: int, shape: KVShape, n_ctx: int
) -> Scratch:
    """Scratch for ``attention(split=...)`` with up to ``n_tiles`` tiles."""
    parts = -(-n_ctx // PART)
    rows = (n_tiles, n_heads, parts, shape.head_v_padded + 2)
    return Scratch(empty(device, rows), parts)


def plain_scratch(device: Device, n_ctx: int) -> Scratch:
    """Scratch for ``attention(plain=...)``: one row of scores per work-item."""
    return Scratch(empty(device, (PLAIN_ITEMS[device.family], n_ctx)), n_ctx)


def attention(
    tape: Tape,
    qkv: Tensor,
    n_heads: int,
    layer: LayerKV,
    inputs: AttentionInputs,
    out: Activations,
    mask: Mask,
    *,
    queries: int | None = None,
    split: Scratch | None = None,
    plain: Scratch | None = None,
) -> None:
    """out[t] = softmax(q[t] K) V, heads side by side, over the keys that the mask allows.

    ``queries``: the most that a tile has, if fewer than ``tile_queries``. qkv: float32 rows
    whose first n_heads * head values are Q, scaled and rotated. ``out`` is float, quantized
    or both; see ``fuses_quantization`` for when it may be quantized only.
    """
    shape, heads = layer.shape, Heads(n_heads, layer.shape.n_kv, split=split is not None)
    most = tile_queries(tape.device, n_heads, shape.n_kv, plain=plain is not None)
    variant = PLAIN if plain else choose(FUSED, tape.device, heads)
    more, grid, local = variant.lay_out(tape.device, heads)
    defines = [
        f"HD={shape.head}", f"HDV={shape.head_v}", *more, f"PAGE={PAGE}",
        f"SELECTIONS={shape.n_kv if mask.by_head else 1}",
        f"QB={1 if split else min(queries or most, most)}", *layer.defines, *mask.defines,
    ]  # fmt: skip
    args = {
        "qkv": qkv, "q_stride": qkv.shape[-1], "n_kv": shape.n_kv, **inputs.paging,
        "k_cache": layer.k.arg, "v_cache": layer.v.arg, **mask.args,
    }  # fmt: skip
    fused = out.quantized and out.values is None
    if split:
        args |= split.parts
    elif plain:
        args |= {
            "out": _values(out), "scratch": plain.buffer, "scratch_stride": plain.width,
            "counts": inputs.counts, "count_at": TILES,
        }  # fmt: skip
    else:
        defines += out.code_defines if fused else []
        args |= _outputs(out, fused)
    work = _work(n_heads, layer, mask)
    tape.add(variant.source, "attention", defines, args, grid, local, work)
    if split:
        _combine(tape, n_heads, layer, inputs, out, mask, split, fused)
    if out.quantized and not fused:
        quantize(tape, out)


def _work(n_heads: int, layer: LayerKV, mask: Mask) -> Work:
    shape = layer.shape
    return Work(
        key_bytes=layer.token_bytes,
        pair_macs=n_heads * (shape.head + shape.head_v),
        window=mask.window,
    )


def _combine(
    tape: Tape,
    n_heads: int,
    layer: LayerKV,
    inputs: AttentionInputs,
    out: Activations,
    mask: Mask,
    scratch: Scratch,
    fused: bool,
) -> None:
    """The results of all parts of a tile's keys together."""
    shape = layer.shape
    ranges = [name for name in mask.defines if name != "SOFTCAP"]  # those of its keys
    defines = [f"HD={shape.head}", f"HDV={shape.head_v}", f"PAGE={PAGE}", *ranges]
    args = {
        **scratch.parts, "tiles": inputs.tiles, "positions": inputs.positions,
        "window": mask.window, "sinks": mask.sinks, **_outputs(out, fused),
    }  # fmt: skip
    defines += out.code_defines if fused else []
    grid = (-(-shape.head_v // 32), n_heads, Per(TILES))
    tape.add("attention/attention_combine.cl", "combine", defines, args, grid)


def _values(out: Activations) -> Tensor:
    if out.values is None:
        raise ValueError("attention on this device needs room for float values")
    return out.values


def _outputs(out: Activations, fused: bool) -> Arguments:
    return {"out_q": out.codes, "out_d": out.scales} if fused else {"out": _values(out)}
