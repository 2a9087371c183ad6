"""What a file says of sparse attention, where an indexer finds the keys that a query attends to.

One key by one (DeepSeek-V3.2, https://arxiv.org/abs/2512.02556), or blocks of them: by one key
for each whole block, which is pooled of its tokens' (GLM-5.3 with ``attention.indexer.kpool``,
Qwen3.8 with ``attention.compress_ratios``), or by the best of its keys, for each KV head by
itself (MiniMax-M3 with ``attention.indexer.block_size``).
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from msgspec import Struct

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.kernels.attention.indexer import Blocks
from gguf_serve.kernels.attention.kv import PAGE

QUERIES = ("indexer.attn_q_b", "indexer.q_proj")  # matrices that only indexers have


class Sparsity(Struct, frozen=True):
    """An indexer's heads and what they choose.

    ``layers``: which layers have one; in latent attention those after it without one use the
    same keys.
    """

    n_heads: int
    head: int
    blocks: Blocks
    eps: float  # of the norms of its queries and keys
    layers: tuple[bool, ...]
    gated: bool = False  # a pooled key is a mean weighted by gates that each token has

    @property
    def by_head(self) -> bool:
        """Whether each of its heads chooses for the KV head of its number."""
        return self.blocks.local is not None

    def chooses(self, n_keys: int) -> bool:
        """Whether a context of so many keys is more than a query may see."""
        return self.blocks.size * (self.blocks.chosen + (self.blocks.local or 0)) < n_keys

    @property
    def pooled(self) -> bool:
        """Whether a block has one key, which is made of its tokens'."""
        return self.blocks.size > 1 and not self.by_head


def read_sparsity(
    gguf: GGUFFile, n_layers: int, eps: float, *, own: bool = True
) -> Sparsity | None:
    """None where all keys are attended to; ModelError for what cannot be computed. ``eps``: the
    model's; ``own``: norms of an indexer of single keys have one of 1e-6."""
    key = gguf.arch_key
    layers = _layers(gguf, n_layers)
    if not any(layers):
        return None
    blocks = _blocks(gguf)
    if blocks is None:
        return None
    found = Sparsity(
        n_heads=gguf.get_int(key("attention.indexer.head_count")),
        head=gguf.get_int(key("attention.indexer.key_length")),
        blocks=blocks,
        eps=gguf.get_float(
            key("attention.layer_norm_epsilon"), 1e-6 if own and blocks.size == 1 else eps
        ),
        layers=layers,
        gated=any("indexer_compressor_gate" in name for name in gguf.tensors),
    )
    if min(found.n_heads, found.head) < 1:
        raise ModelError(
            f"{gguf.path}: {found.n_heads} heads of {found.head} in an indexer, "
            "expected 1 or more of each"
        )
    _check_blocks(gguf, found)
    return found


def _layers(gguf: GGUFFile, n_layers: int) -> tuple[bool, ...]:
    """Those with an indexer of their own: what has its tensors, unless the file says otherwise."""
    key = gguf.arch_key
    has = [any(f"blk.{i}.{q}.weight" in gguf.tensors for q in QUERIES) for i in range(n_layers)]
    for name in ("attention.indexer.types", "attention.compress_ratios"):
        value = gguf.metadata.get(key(name))
        if isinstance(value, Iterable) and not isinstance(value, str):
            flags = [bool(v) for v in value]
            if len(flags) < n_layers:
                raise ModelError(f"{gguf.path}: {key(name)} has {len(flags)} of {n_layers} values")
            has = [a and b for a, b in zip(has, flags, strict=False)]
    return tuple(has)


def _blocks(gguf: GGUFFile) -> Blocks | None:
    key = gguf.arch_key
    top_k = gguf.get_int(key("attention.indexer.top_k"), 0)
    if key("attention.indexer.block_size") in gguf.metadata:
        local = min(gguf.get_int(key("attention.indexer.local_blocks"), 0), top_k)
        return Blocks(gguf.get_int(key("attention.indexer.block_size")), top_k - local, local)
    if key("attention.indexer.kpool") in gguf.metadata:
        size = gguf.get_int(key("attention.indexer.kpool"))
    elif any(name.endswith(f".{QUERIES[0]}.weight") for name in gguf.tensors):
        size = 1
    else:
        sizes = gguf.metadata.get(key("attention.compress_ratios"))
        listed = {int(n) for n in sizes} - {0} if isinstance(sizes, np.ndarray) else set()
        if not listed:
            return None
        if len(listed) > 1:
            raise ModelError(
                f"{gguf.path}: blocks of {sorted(listed)} keys (compress_ratios), expected one size"
            )
        (size,) = listed
    if not top_k:
        return None
    if size < 1 or top_k % size:
        raise ModelError(
            f"{gguf.path}: an indexer chooses {top_k} keys in blocks of {size}, "
            "expected a multiple of the block"
        )
    return Blocks(size, top_k // size)


def _check_blocks(gguf: GGUFFile, found: Sparsity) -> None:
    size = found.blocks.size
    whole = size > 0 and (PAGE % size == 0 or (found.by_head and size % PAGE == 0))
    if not whole or found.blocks.chosen < 0:
        raise ModelError(
            f"{gguf.path}: an indexer with {found.blocks.chosen} blocks of {size} keys, expected 0 "
            f"or more of a divisor of {PAGE}{' or a multiple' if found.by_head else ''}"
        )
