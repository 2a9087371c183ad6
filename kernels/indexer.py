"""Which keys each query attends to, in sparse attention with an indexer (indexer.cl)."""

from __future__ import annotations

import numpy as np

from kernels.attention import PART, AttentionInputs
from kernels.kv import PAGE, LayerKV
from kernels.tape import PARTS, TILES, TOKENS, Per, Tape
from kernels.tensor import Tensor

SIMT_GROUP = 128


def index_scores(
    tape: Tape,
    q: Tensor,
    weights: Tensor,
    keys: LayerKV,
    inputs: AttentionInputs,
    top_k: int,
    scores: Tensor,
) -> None:
    """scores[t, s] = sum_h weights[t, h] max(0, q[t, h] . k[s]) for tiles beyond top_k keys.

    q: float32 [n, heads * head]; weights: [n, heads]; scores: [n, keys], whole pages.
    """
    n_heads, head = weights.shape[1], keys.shape.head
    if q.shape[1] != n_heads * head or keys.shape.n_kv != 1 or scores.shape[1] % PAGE:
        raise ValueError(f"rows of {q.shape[1]}, {n_heads} heads, keys of {keys.shape}")
    args = [
        q.buffer, weights.buffer, inputs.tiles.buffer, inputs.positions.buffer,
        inputs.tables.buffer, np.int32(inputs.tables.shape[1]), *keys.k.args, scores.buffer,
        np.int32(scores.shape[1]),
    ]  # fmt: skip
    defines = [
        f"HD={head}", "HDV=16", f"HEADS={n_heads}", f"PAGE={PAGE}", f"TOP_K={top_k}", "WG=1",
        *keys.defines,
    ]  # fmt: skip
    group = 1 if tape.device.is_simd else PAGE
    grid = (Per(PARTS, 1, PART // PAGE * group), Per(TILES))
    tape.add("indexer.cl", "index_scores", defines, args, grid, (group, 1))


def select_keys(
    tape: Tape,
    scores: Tensor,
    inputs: AttentionInputs,
    top_k: int,
    selected: Tensor,
    *,
    ratio: int = 1,
) -> None:
    """selected: int32 [n, words], a bit for each key: the top_k by their scores. A key stands for
    ``ratio`` tokens."""
    group = 1 if tape.device.is_simd else SIMT_GROUP
    args = [
        scores.buffer, np.int32(scores.shape[1]), inputs.positions.buffer, selected.buffer,
        np.int32(selected.shape[1]),
    ]  # fmt: skip
    defines = [f"TOP_K={top_k}", f"PAGE={PAGE}", f"WG={group}", f"RATIO={ratio}"]
    tape.add("indexer.cl", "select_keys", defines, args, (Per(TOKENS, 1, group),), (group,))
