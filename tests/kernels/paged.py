"""Random sequences in a paged KV cache that is poisoned wherever nothing was written."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from launching import run

from kernels.device import Device
from kernels.kv import KV_TYPES, PAGE, KVPages, KVShape, LayerKV
from kernels.program import Programs
from kernels.rope import RopeStyle, qkv_rows, rope_kv
from kernels.tensor import Tensor, upload, write

Doubles = npt.NDArray[np.float64]


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
        for tensor in (layer.k, layer.v):
            nan = np.full(tensor.shape, np.nan, tensor.dtype)
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
    programs: Programs,
    shape: KVShape,
    lengths: Sequence[int],
    types: tuple[str, str],
    rng: np.random.Generator,
) -> PagedCache:
    """Sequences of these lengths with random K and V, written by ``rope_kv``."""
    total = sum(lengths)
    tables = random_tables(lengths, rng)
    layer = poisoned_pages(device, [shape], int(tables.max()) + 1, *types).layers[0]
    k = rng.standard_normal((total, shape.n_kv, shape.head), dtype=np.float32)
    v = rng.standard_normal((total, shape.n_kv, shape.head_v), dtype=np.float32)
    slots = [slots_of(t, np.arange(n)) for t, n in zip(tables, lengths, strict=True)]
    on_device = upload(device, np.concatenate(slots).astype(np.int32))
    qkv = upload(device, joined(np.zeros((total, 1, shape.head), np.float32), k, v))
    style = RopeStyle(n_rot=2, neox=False)
    run(
        device, programs, total,
        lambda tape: rope_kv(
            tape, qkv_rows(qkv, 1, layer.shape), 1, layer, None, on_device, style=style, scale=1.0
        ),
    )  # fmt: skip
    ends = np.cumsum(lengths)[:-1]
    stored = (a.astype(KV_TYPES[t]).astype(np.float64) for a, t in zip((k, v), types, strict=True))
    split_k, split_v = (np.split(array, ends) for array in stored)
    return PagedCache(layer, tables, split_k, split_v)


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
) -> Doubles:
    """Attention of one token in double precision: q [n_heads, head] to [n_heads, head_v]."""
    first = max(0, position - window + 1) if window else 0
    end = position + 1
    if bidirectional:
        first = max(0, position - window // 2) if window else 0
        end = min(len(k), position + window // 2 + 1) if window else len(k)
    group = len(q) // k.shape[1]
    keys, values = (np.repeat(a[first:end], group, axis=1) for a in (k, v))
    scores = np.einsum("hd,thd->ht", q, keys)
    if softcap:
        scores = softcap * np.tanh(scores / softcap)
    weights = np.exp(scores - scores.max(1, keepdims=True))
    weights /= weights.sum(1, keepdims=True)
    return np.einsum("ht,thd->hd", weights, values)


def nan_rows(device: Device, n_rows: int, n_cols: int) -> Tensor:
    return upload(device, np.full((n_rows, n_cols), np.nan, np.float32))
