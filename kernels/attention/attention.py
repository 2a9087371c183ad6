"""Attention over KV pages: fused (attention_simd.cl, attention_simt.cl), or plain.

The caller cuts the step's tokens into tiles of consecutive tokens of one sequence
(``tile_queries`` says how many at most). With ``split`` (split-KV, as in flash-decoding) every
tile has one query and its keys are shared out in parts of 256, for steps that have few queries and
long contexts.
"""

from __future__ import annotations

from dataclasses import dataclass

from gguf_serve.kernels.attention.kv import PAGE, KVShape, LayerKV
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.signature import Arguments
from gguf_serve.kernels.opencl.tape import PARTS, TILES, Grid, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor, empty
from gguf_serve.kernels.opencl.work import Work
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.rows.norm import quantize

PART = 256  # keys per part (attention.cl)
ROWS_PER_ITEM = 6  # query rows that a simd work-item takes through a page together
HEADS_PER_ITEM = 16  # query heads of one KV head that a simd work-item takes at most
PLAIN_ITEMS = {"simd": 8, "simt": 1024}


@dataclass(frozen=True, slots=True)
class AttentionInputs:
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


@dataclass(frozen=True, slots=True)
class Mask:
    """Which keys a query sees, and what is done to their scores.

    window: keys that a query sees, 0 for all; softcap: of the scores, 0 for none.
    chunked: the window is the query's own stretch of so many tokens, not the last ones.
    bidirectional: keys after the query count too; the window is half before it, half after.
    together: a query sees the keys up to tile.w in any case, those after it too.
    slopes: float32 [heads], what a score loses per token of distance (ALiBi); sinks: float32
    [heads], attention sinks, the score of one more key without a value; selected: int32 [n, pages],
    bits of the keys that a token sees (indexer.py), or [n, KV heads * pages] where ``by_head``.
    """

    window: int = 0
    softcap: float = 0.0
    chunked: bool = False
    bidirectional: bool = False
    together: bool = False
    slopes: Tensor | None = None
    sinks: Tensor | None = None
    selected: Tensor | None = None
    by_head: bool = False

    @property
    def defines(self) -> list[str]:
        flags = {
            "SOFTCAP": self.softcap, "CHUNKED": self.chunked, "BIDIRECTIONAL": self.bidirectional,
            "TOGETHER": self.together,
        }  # fmt: skip
        return [name for name, on in flags.items() if on]

    @property
    def args(self) -> Arguments:
        words = None if self.selected is None else self.selected.shape[1]
        return {
            "window": self.window, "softcap": self.softcap, "slopes": self.slopes,
            "sinks": self.sinks, "selected": self.selected, "n_words": words,
        }  # fmt: skip


@dataclass(frozen=True, slots=True)
class Scratch:
    """Memory between launches: partial results of parts, or rows of scores."""

    buffer: Tensor
    width: int  # parts per head, or scores per row


def tile_queries(device: Device, n_heads: int, n_kv: int, *, plain: bool = False) -> int:
    """The most queries that a tile of a prompt may have."""
    if plain or not device.is_simd:
        return 1
    return max(1, ROWS_PER_ITEM * n_kv // n_heads)


def fuses_quantization(device: Device, head_v: int, *, plain: bool) -> bool:
    """Whether attention can write integer activations without room for floats."""
    return device.is_simd and head_v % 32 == 0 and not plain


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
    shape, simd = layer.shape, tape.device.is_simd
    most = tile_queries(tape.device, n_heads, shape.n_kv, plain=bool(plain))
    queries = 1 if split else min(queries or most, most)
    share = 1 if plain or not simd else _share(n_heads // shape.n_kv)
    defines = [
        f"HD={shape.head}", f"HDV={shape.head_v}", f"G={n_heads // shape.n_kv // share}",
        *([f"SHARE={share}"] if share > 1 else []), f"PAGE={PAGE}",
        f"SELECTIONS={shape.n_kv if mask.by_head else 1}",
        f"QB={queries}", *layer.defines, *mask.defines,
    ]  # fmt: skip
    args = {
        "qkv": qkv, "q_stride": qkv.shape[-1], "n_kv": shape.n_kv, **inputs.paging,
        "k_cache": layer.k.arg, "v_cache": layer.v.arg, **mask.args,
    }  # fmt: skip
    fused = out.quantized and out.values is None
    work = _work(n_heads, layer, mask)
    if split:
        _split(tape, n_heads, share, layer, inputs, out, mask, split, defines, args, fused, work)
    elif plain:
        items = PLAIN_ITEMS[tape.device.family]
        args |= {
            "out": _values(out), "scratch": plain.buffer, "scratch_stride": plain.width,
            "counts": inputs.counts, "count_at": TILES,
        }  # fmt: skip
        tape.add("attention/attention_plain.cl", "attention", defines, args, (items,), work=work)
    else:
        defines += out.code_defines if fused else []
        args |= _outputs(out, fused)
        items = shape.n_kv * share if simd else n_heads
        _launch(tape, defines, args, (items, Per(TILES)), work)
    if out.quantized and not fused:
        quantize(tape, out)


def _share(group: int) -> int:
    """How many work-items share the query heads of one KV head."""
    return next(s for s in range(1, group + 1) if group % s == 0 and group // s <= HEADS_PER_ITEM)


def _work(n_heads: int, layer: LayerKV, mask: Mask) -> Work:
    shape = layer.shape
    return Work(
        key_bytes=layer.token_bytes,
        pair_macs=n_heads * (shape.head + shape.head_v),
        window=mask.window,
    )


def _split(
    tape: Tape,
    n_heads: int,
    share: int,
    layer: LayerKV,
    inputs: AttentionInputs,
    out: Activations,
    mask: Mask,
    scratch: Scratch,
    defines: list[str],
    args: Arguments,
    fused: bool,
    work: Work,
) -> None:
    partial = {"partial": scratch.buffer, "max_parts": scratch.width}
    heads = layer.shape.n_kv * share if tape.device.is_simd else n_heads
    _launch(tape, defines, {**args, **partial}, (Per(PARTS), heads, Per(TILES)), work)
    merge = {
        **partial, "tiles": inputs.tiles, "positions": inputs.positions, "window": mask.window,
        "sinks": mask.sinks, **_outputs(out, fused),
    }  # fmt: skip
    grid = (-(-layer.shape.head_v // 32), n_heads, Per(TILES))
    names = [d for d in defines if d.startswith(("HD", "PAGE", "CHUNKED", "BIDI", "TOGETHER"))]
    names += out.code_defines if fused else []
    tape.add("attention/attention_combine.cl", "combine", names, merge, grid)


def _launch(tape: Tape, defines: list[str], args: Arguments, grid: Grid, work: Work) -> None:
    if tape.device.is_simd:
        tape.add("attention/attention_simd.cl", "attention", defines, args, grid, work=work)
        return
    first, group = grid[0], tape.device.tuning.attention_group
    wide = (
        Per(first.index, first.tile, first.times * group)
        if isinstance(first, Per)
        else first * group
    )
    local = (group,) + (1,) * (len(grid) - 1)
    tape.add(
        "attention/attention_simt.cl", "attention", [*defines, f"WG={group}"], args,
        (wide, *grid[1:]), local, work,
    )  # fmt: skip


def _values(out: Activations) -> Tensor:
    if out.values is None:
        raise ValueError("attention on this device needs room for float values")
    return out.values


def _outputs(out: Activations, fused: bool) -> Arguments:
    return {"out_q": out.codes, "out_d": out.scales} if fused else {"out": _values(out)}
