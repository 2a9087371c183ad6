"""Which keys each query attends to, in sparse attention with an indexer (indexer.cl)."""

from __future__ import annotations

from msgspec import Struct

from gguf_serve.kernels.attention.attention import PART, AttentionInputs
from gguf_serve.kernels.attention.kv import PAGE, LayerKV
from gguf_serve.kernels.opencl.tape import PARTS, TILES, TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor

SIMT_GROUP = 128


class Blocks(Struct, frozen=True):
    """A query chooses ``chosen`` of the blocks of ``size`` keys, and sees the keys after these.

    local: the last so many blocks, its own among them, are seen in any case, the others compete;
    None: all whole blocks compete. size: divides the keys of a page, or is a multiple of them.
    """

    size: int
    chosen: int
    local: int | None = None

    @property
    def defines(self) -> list[str]:
        kind = ["TAIL"] if self.local is None else [f"LOCAL={self.local}"]
        return [f"BLOCK={self.size}", f"CHOSEN={self.chosen}", f"PAGE={PAGE}", *kind]

    def n_scores(self, n_keys: int) -> int:
        """The width of a row of scores for so many keys, whole pages."""
        return -(-n_keys // self.size // PAGE) * PAGE


def index_scores(
    tape: Tape,
    q: Tensor,
    weights: Tensor | None,
    keys: LayerKV,
    inputs: AttentionInputs,
    blocks: Blocks,
    scores: Tensor,
) -> None:
    """scores[t, b] = sum_h weights[t, h] max(0, q[t, h] . k[b]) where there is a choice.

    q: float32 [n, heads * head]; weights: [n, heads], None: ones; k: a key for each block;
    scores: [n, blocks.n_scores(keys)].
    """
    head = keys.shape.head
    n_heads = q.shape[1] // head
    if q.shape[1] % head or keys.shape.n_kv != 1 or keys.shape.block != blocks.size:
        raise ValueError(f"rows of {q.shape[1]}, keys of {keys.shape}, {blocks}")
    if scores.shape[1] % PAGE or (weights is not None and weights.shape[1] != n_heads):
        raise ValueError(f"scores {scores.shape}, weights {weights} of {n_heads} heads")
    args = {
        "q": q, "weights": weights, **inputs.paging, "k_cache": keys.k.arg,
        "scores": scores, "stride": scores.shape[1],
    }  # fmt: skip
    defines = _defines(q, keys, blocks)
    group = 1 if tape.device.is_simd else PAGE
    grid = (Per(PARTS, blocks.size, PART // PAGE * group), Per(TILES))
    tape.add("attention/indexer.cl", "index_scores", defines, args, grid, (group, 1))


def block_maxima(
    tape: Tape, q: Tensor, keys: LayerKV, inputs: AttentionInputs, blocks: Blocks, scores: Tensor
) -> None:
    """scores[t, h, b] = the largest q[t, h] . k[s] of a block's keys, where there is a choice.

    q: float32 [n, heads * head]; scores: [n, heads * blocks.n_scores(keys)].
    """
    n_heads, size = q.shape[1] // keys.shape.head, max(blocks.size, PAGE)
    if size % PAGE or size % blocks.size or keys.shape.n_kv != 1 or scores.shape[1] % n_heads:
        raise ValueError(f"scores {scores.shape}, keys of {keys.shape}, {blocks}")
    args = {
        "q": q, **inputs.paging, "k_cache": keys.k.arg, "scores": scores,
        "stride": scores.shape[1] // n_heads,
    }  # fmt: skip
    group = 1 if tape.device.is_simd else PAGE
    grid = (Per(PARTS, 1, -(-PART // size) * group), Per(TILES))
    defines = _defines(q, keys, blocks)
    tape.add("attention/indexer.cl", "block_maxima", defines, args, grid, (group, 1))


def select_keys(
    tape: Tape,
    scores: Tensor,
    inputs: AttentionInputs,
    blocks: Blocks,
    selected: Tensor,
    n_rows: int = 1,
    *,
    by_block: bool = False,
) -> None:
    """selected: int32 [n, n_rows * words], a bit for each key, or ``by_block`` for each whole
    block: of the best blocks by each of the n_rows rows of scores that a token has."""
    group = tape.device.group(SIMT_GROUP)
    args = {
        "scores": scores, "stride": scores.shape[1] // n_rows, "positions": inputs.positions,
        "selected": selected, "n_words": selected.shape[1] // n_rows,
    }  # fmt: skip
    grid = (Per(TOKENS, 1, group), n_rows)
    defines = [*blocks.defines, f"WG={group}", *["BY_BLOCK"] * by_block]
    tape.add("attention/indexer.cl", "select_keys", defines, args, grid, (group, 1))


def _defines(q: Tensor, keys: LayerKV, blocks: Blocks) -> list[str]:
    head = keys.shape.head
    return [
        f"HD={head}", "HDV=16", f"HEADS={q.shape[1] // head}", "WG=1", *blocks.defines,
        *keys.defines,
    ]  # fmt: skip
