"""Random sequences in a paged KV cache that is poisoned wherever nothing was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType
from gguf.quants import IQ4_NL, dequantize, quantize
from launching import run
from msgspec.structs import replace

from gguf_serve.kernels.attention.kv import PAGE, KVPages, KVShape, LayerKV, Pages
from gguf_serve.kernels.attention.rope import RopeStyle, qkv_rows, rope_kv
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import Tensor, read, upload, write
from gguf_serve.kernels.quantization import quants

Doubles = npt.NDArray[np.float64]
Floats = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class PagedCache:
    """One layer's pages; tables: int32 [sequences, pages]; k, v: per sequence, as stored."""

    layer: LayerKV
    tables: npt.NDArray[np.int32]
    k: list[Doubles]  # [length, n_kv, head]
    v: list[Doubles]  # [length, n_kv, head_v]


def poisoned_pages(
    device: Device, shapes: Sequence[KVShape], n_pages: int, type_k: str, type_v: str
) -> KVPages:
    """Pages that hold nothing but NaN."""
    pages = KVPages(device, shapes, n_pages, type_k, type_v)
    for layer in pages.layers:
        for tensor in (*layer.k.slabs, *layer.v.slabs):
            nan = np.full(tensor.shape, 0xFF, np.uint8)  # in all floats, and so in scales
            write(device, tensor, nan, wait=True)
    return pages


def random_tables(lengths: Sequence[int], rng: np.random.Generator) -> npt.NDArray[np.int32]:
    """Pages in no order, a table per sequence; page 0 is nobody's and fills the tables' ends."""
    n_pages = [-(-length // PAGE) for length in lengths]
    numbers = iter(1 + rng.permutation(sum(n_pages)))
    tables = np.zeros((len(lengths), max(n_pages) + 1), np.int32)
    for table, n in zip(tables, n_pages, strict=True):
        table[:n] = [next(numbers) for _ in range(n)]
    return tables


def slots_of(table: npt.NDArray[np.int32], positions: npt.NDArray[np.int32]) -> npt.NDArray:
    """Where tokens go: page * PAGE + row."""
    return table[positions // PAGE] * PAGE + positions % PAGE


def filled_cache(
    device: Device,
    shape: KVShape,
    lengths: Sequence[int],
    types: tuple[str, str],
    rng: np.random.Generator,
    slab_pages: int = 0,
) -> PagedCache:
    """Sequences of these lengths with random K and V. ``slab_pages``: the device can allocate so
    many pages at once; 0: any number."""
    total = sum(lengths)
    tables = random_tables(lengths, rng)
    limit = slab_pages * max(shape.page_bytes(*types)) or device.max_allocation
    limited = replace(device, max_allocation=limit)
    layer = poisoned_pages(limited, [shape], int(tables.max()) + 1, *types).layers[0]
    k = rng.standard_normal((total, shape.n_kv, shape.head), dtype=np.float32)
    v = rng.standard_normal((total, shape.n_kv, shape.head_v), dtype=np.float32)
    slots = [slots_of(t, np.arange(n)) for t, n in zip(tables, lengths, strict=True)]
    places = np.concatenate(slots).astype(np.int32)
    padding = ((0, 0), (0, 0), (0, shape.head_v_padded - shape.head_v))
    _store(device, layer.k, types[0], k, places, transposed=True)
    _store(device, layer.v, types[1], np.pad(v, padding), places, transposed=False)
    ends = np.cumsum(lengths)[:-1]
    stored = stored_heads(device, layer, places)
    split_k, split_v = (np.split(array.astype(np.float64), ends) for array in stored)
    return PagedCache(layer, tables, split_k, split_v)


def write_heads(
    device: Device,
    programs: Programs,
    layer: LayerKV,
    k: Floats,
    v: Floats,
    slots: npt.NDArray[np.int32],
    q: Floats | None = None,
) -> Floats:
    """Store K [n, n_kv, head] and V [n, n_kv, head_v] in these slots, at no position. Returns
    what becomes of ``q``, [n, 1, head]."""
    q = np.zeros((len(k), 1, layer.shape.head), np.float32) if q is None else q
    qkv, places = upload(device, joined(q, k, v)), upload(device, slots)
    rows, style = qkv_rows(qkv, 1, layer.shape), RopeStyle(n_rot=2, neox=False)
    run(
        device, programs, len(k),
        lambda tape: rope_kv(tape, rows, 1, layer, None, places, style=style, scale=1.0),
    )  # fmt: skip
    result: Floats = read(qkv, None, device.queue)[:, None, : layer.shape.head]
    return result


def stored_heads(
    device: Device, layer: LayerKV, slots: npt.NDArray[np.int32]
) -> tuple[Floats, Floats]:
    """K [n, n_kv, head] and V [n, n_kv, head_v] in these slots, by the layout of kv.cl."""
    shape, (type_k, type_v) = layer.shape, layer.types
    raw_k, raw_v = (
        stored_pages(device, pages).reshape(-1, shape.n_kv, pages.page_bytes // shape.n_kv)
        for pages in (layer.k, layer.v)
    )
    k = _values(raw_k, type_k, shape.head, transposed=True)
    v = _values(raw_v, type_v, shape.head_v_padded, transposed=False)
    pages, rows = slots // PAGE, slots % PAGE
    return k[pages, :, rows], v[pages, :, rows, : shape.head_v]


def stored_pages(device: Device, pages: Pages) -> Bytes:
    """uint8 [pages, bytes of a page]."""
    return np.concatenate([read(slab, None, device.queue) for slab in pages.slabs])


def _values(pages: Bytes, name: str, n: int, *, transposed: bool) -> Floats:
    """Pages [..., bytes] as float32 [..., PAGE, n]; ``transposed``: tokens lie side by side."""
    kind = quants.by_name(name.upper())
    n_blocks, heads = -(-n // kind.block_elements), pages.shape[:-1]
    views = _parts(pages, kind, n_blocks, transposed=transposed)
    raw = np.concatenate([view.reshape(*heads, PAGE, n_blocks, -1) for view in views], axis=-1)
    rows = np.ascontiguousarray(raw).reshape(-1, n_blocks * kind.block_bytes)
    values = dequantize(rows, GGMLQuantizationType[kind.name])
    return values.reshape(*heads, PAGE, -1)[..., :n]


def _parts(
    pages: Bytes, kind: quants.TensorType, n_blocks: int, *, transposed: bool
) -> list[Bytes]:
    """What pages [..., bytes] have of each token's blocks, in the order of a block of ggml's:
    views, uint8 [..., PAGE, n_blocks, words, bytes of a word]."""
    total, heads = PAGE * n_blocks, pages.shape[:-1]

    def part(begin: int, end: int, width: int, transposed: bool = transposed) -> Bytes:
        """Bytes ``begin`` to ``end`` of blocks: what has as many bytes per block, in words."""
        order = (n_blocks, -1, PAGE, width) if transposed else (PAGE, n_blocks, -1, width)
        array = pages[..., begin * total : end * total].reshape(*heads, *order)
        return np.moveaxis(array, -2, -4) if transposed else array

    if kind.block_elements == 1:
        return [part(0, kind.block_bytes, kind.block_bytes)]
    codes = 32 if kind.name == "Q8_0" else 16
    high = codes + (4 if kind.name.startswith("Q5") else 0)
    scales = [part(at, at + 2, 2, True) for at in range(high, kind.block_bytes, 2)]
    fifth_bits = [part(codes, high, 4)] if high > codes else []
    return [*scales, *fifth_bits, part(0, codes, 1)]


def _store(
    device: Device,
    pages: Pages,
    name: str,
    values: Floats,
    slots: npt.NDArray[np.int32],
    *,
    transposed: bool,
) -> None:
    """Write values [n, n_kv, width] to these slots of pages, by the layout of kv.cl."""
    (n, n_kv, width), kind = values.shape, quants.by_name(name.upper())
    n_blocks = -(-width // kind.block_elements)
    filled = np.pad(values, ((0, 0), (0, 0), (0, n_blocks * kind.block_elements - width)))
    blocks = _quantized(filled.reshape(n * n_kv, -1), kind.name)
    blocks = blocks.reshape(n, n_kv, n_blocks, kind.block_bytes)
    raw = stored_pages(device, pages)
    views = _parts(raw.reshape(len(raw), n_kv, -1), kind, n_blocks, transposed=transposed)
    at = 0
    for view in views:
        end = at + view.shape[-2] * view.shape[-1]
        part = blocks[..., at:end].reshape(n, n_kv, *view.shape[-3:])
        view[slots // PAGE, :, slots % PAGE] = part
        at = end
    ends = np.cumsum([slab.shape[0] for slab in pages.slabs])[:-1]
    for slab, of_slab in zip(pages.slabs, np.split(raw, ends), strict=True):
        write(device, slab, of_slab, wait=True)


def _quantized(rows: Floats, name: str) -> Bytes:
    """Rows as blocks, by the gguf package or, where it is mute, to the nearest of the codes."""
    if name != "IQ4_NL":
        return quantize(rows, GGMLQuantizationType[name]).view(np.uint8)
    blocks = rows.reshape(-1, 32)
    table = np.array(IQ4_NL.kvalues, np.float32)
    d = (np.abs(blocks).max(1, keepdims=True) / table.max()).astype(np.float16)
    codes = np.abs((blocks / d)[..., None] - table).argmin(-1).astype(np.uint8)
    return np.concatenate([d.view(np.uint8), codes[:, :16] | codes[:, 16:] << 4], axis=1)


def joined(*heads: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Rows of Q, K and V heads side by side."""
    return np.concatenate([part.reshape(len(part), -1) for part in heads], axis=1)


def attended(
    q: Doubles,
    k: Doubles,
    v: Doubles,
    position: int,
    *,
    window: int = 0,
    softcap: float = 0.0,
    bidirectional: bool = False,
    start: int = 0,
    biases: Doubles | None = None,
) -> Doubles:
    """Attention of one token in double precision: q [n_heads, head] to [n_heads, head_v].
    ``start``: the first key there is; ``biases``: see Mask."""
    first = max(0, position - window + 1) if window else start
    end = position + 1
    if bidirectional:
        first = max(0, position - window // 2) if window else 0
        end = min(len(k), position + window // 2 + 1) if window else len(k)
    group = len(q) // k.shape[1]
    keys, values = (np.repeat(a[first:end], group, axis=1) for a in (k, v))
    scores = np.einsum("hd,thd->ht", q, keys)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    if biases is not None:
        reach = biases.shape[1] // 2
        scores += biases[:, reach + np.clip(np.arange(first, end) - position, -reach, reach)]
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("ht,thd->hd", weights, values)


def nan_rows(device: Device, n_rows: int, n_cols: int) -> Tensor:
    return upload(device, np.full((n_rows, n_cols), np.nan, np.float32))
