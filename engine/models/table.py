"""The table of architectures: ``general.architecture`` to its row."""

from __future__ import annotations

from engine.errors import ModelError
from engine.models.arch import Architecture

_ROWS = (
    Architecture("llama"),
    Architecture("qwen2", neox_rope=True),
    Architecture(
        "gemma3",
        neox_rope=True,
        activation="gelu",
        scale_embedding=True,
        window_pattern=6,
        window_rope_base=10000.0,
    ),
)

ARCHITECTURES = {row.name: row for row in _ROWS}


def find_architecture(name: str) -> Architecture:
    """The row of an architecture; ModelError names an unknown one and lists the others."""
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelError(f"unknown architecture {name!r}; supported: {known}")
    return ARCHITECTURES[name]
