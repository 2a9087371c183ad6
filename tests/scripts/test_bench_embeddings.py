"""How fast an embedding model reads: scripts/bench_embeddings.py."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import bench_embeddings
import pytest
from bench_engine import EngineSubject


def test_both_get_the_same_prompts(
    conformance_model: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_embeddings, "SIZES", ((2, 5), (1, 9)))
    monkeypatch.setattr(bench_embeddings, "SETTLE_SECONDS", 0)
    asked = list[list[list[int]]]()
    subject = EngineSubject(
        conformance_model("bert"), n_ctx=64, n_slots=2, device=None, n_threads=0, shares=True
    )

    def ours(op: str, prompts: list[list[int]]) -> dict[str, Any]:
        asked.append(prompts)
        return subject.ask(op, prompts=prompts)

    def peer(op: str, prompts: list[list[int]]) -> dict[str, Any]:
        assert prompts == asked[-1]
        return {"value": 1.0}

    try:
        rows = bench_embeddings.measure(ours, peer, subject.engine.info.n_vocab, repeat=2)
    finally:
        subject.close()
    assert [row.name for row in rows] == ["embed 2 x 5 tokens", "embed 1 x 9 tokens"]
    assert all(len(row.ours) == 2 and min(row.ours) > 0 for row in rows)
    assert [row.peer for row in rows] == [[1.0, 1.0]] * 2
    assert len({str(prompts) for prompts in asked}) == 6  # none twice
