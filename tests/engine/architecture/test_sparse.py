"""What a file says of sparse attention: which kind, how much is chosen, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from gguf_serve.engine.architecture.sparse import Sparsity, read_sparsity
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.kernels.attention.indexer import Blocks

Read = Callable[..., Sparsity | None]


@pytest.fixture
def read(conformance_model: Callable[[str], Path]) -> Read:
    """A conformance model's, with other metadata; keys follow "attention." and the like."""

    def run(name: str, metadata: dict[str, object]) -> Sparsity | None:
        with open_gguf(conformance_model(name)) as gguf:
            changed = {gguf.arch_key(f"attention.{key}"): v for key, v in metadata.items()}
            gguf.metadata = MappingProxyType({**gguf.metadata, **changed})
            return read_sparsity(gguf, 2, 1e-5)

    return run


@pytest.mark.parametrize(
    ("name", "metadata", "blocks", "layers"),
    [
        ("deepseek32-moe", {}, Blocks(1, 131072), (True, True)),
        ("hy_v4-moe", {}, Blocks(1, 131072), (True, False)),
        ("deepseek32-moe", {"indexer.types": np.array([1, 0])}, Blocks(1, 131072), (True, False)),
        ("glm5-next-moe", {"indexer.top_k": 2048}, Blocks(4, 512), (True, False)),
        ("minimax-m3-moe", {"indexer.top_k": 16}, Blocks(4, 15, local=1), (False, True)),
        (
            "qwen4exp-moe",
            {"indexer.top_k": 2048, "compress_ratios": np.array([0, 4])},
            Blocks(4, 512), (False, True),
        ),
    ],
)  # fmt: skip
def test_kinds(
    read: Read,
    name: str,
    metadata: dict[str, object],
    blocks: Blocks,
    layers: tuple[bool, ...],
) -> None:
    found = read(name, metadata)
    assert found is not None
    assert (found.blocks, found.layers) == (blocks, layers)
    assert found.by_head == name.startswith("minimax")
    assert found.pooled == name.startswith(("glm5", "qwen4"))
    assert found.gated == name.startswith("glm5")


def test_where_all_keys_are_seen(read: Read) -> None:
    """Models without an indexer, and an indexer that the file gives no blocks."""
    assert read("llama-dense", {}) is None
    assert read("qwen4exp-moe", {}) is None
    assert read("glm-dsa-moe", {"indexer.top_k": 0}) is None
    assert not Sparsity(1, 1, Blocks(4, 5, local=2), 1e-5, (True,)).chooses(28)
    assert Sparsity(1, 1, Blocks(4, 5, local=2), 1e-5, (True,)).chooses(29)


@pytest.mark.parametrize(
    ("name", "metadata", "message"),
    [
        ("glm5-next-moe", {"indexer.top_k": 30}, "chooses 30 keys in blocks of 4"),
        ("glm5-next-moe", {"indexer.kpool": 3, "indexer.top_k": 30}, "blocks of 3 keys"),
        ("minimax-m3-moe", {"indexer.block_size": 48}, "blocks of 48 keys"),
        ("deepseek32-moe", {"indexer.head_count": 0}, "0 heads of 128"),
        ("deepseek32-moe", {"indexer.types": np.array([1])}, "types has 1 of 2 values"),
        ("qwen4exp-moe", {"compress_ratios": np.array([8, 4])}, r"blocks of \[4, 8\] keys"),
    ],
)  # fmt: skip
def test_what_cannot_be_computed(
    read: Read, name: str, metadata: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        read(name, metadata)
