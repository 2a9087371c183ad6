"""The table of all families: scripts/bench_all.py."""

from __future__ import annotations

from typing import Any

from bench_all import FAMILIES, Model, Results
from model_shapes import SHAPES


def row(name: str, ours: list[float], peer: list[float], ratio: float | None) -> dict[str, Any]:
    return {"name": name, "ours": ours, "peer": peer, "ratio": ratio}


def test_every_family_has_shapes_that_can_be_written() -> None:
    """And a size, by which models share the time: a 7B of 4.5 bits has some 4 GB."""
    assert all(name in SHAPES for names in FAMILIES.values() for name in names)
    assert 3.5e9 < Model("large", "llama-7b").size < 4.5e9


def test_a_line_has_medians_and_ratios() -> None:
    """Where the peer has no number ours stands alone, and what was not measured is empty."""
    results = Results()
    rows = [
        row("prompt, 512 tokens", [900.0, 1200.0, 1000.0], [500.0, 400.0, 600.0], 2.0),
        row("generate 64 after 16", [41.234], [], None),
        row("peak memory", [80.0], [100.0], 1.25),
    ]
    facts = {"model": "a.gguf", "processor": "some"}
    results.add(Model("states", "mamba2-small"), {"rows": rows, "facts": facts})
    assert results.lines == [
        ["states", "mamba2-small", "1000 / 500 (**2.00**)", "41.2", "", "80 / 100 (**1.25**)"]
    ]
    assert results.facts == {"processor": "some"}
    assert results.numbers["mamba2-small"] == rows
