"""The table of architectures: ``general.architecture`` to its row."""

from __future__ import annotations

from gguf_serve.engine.architecture.arch import Architecture
from gguf_serve.engine.architecture.families import (
    codecs,
    dense,
    diffusion,
    drafts,
    encoder_decoder,
    encoders,
    experts,
    latent,
    state,
    streams,
)
from gguf_serve.engine.errors import ModelError

KINDS: dict[str, tuple[Architecture, ...]] = {
    family.KIND: family.ROWS
    for family in (
        dense,
        experts,
        latent,
        state,
        streams,
        diffusion,
        encoder_decoder,
        encoders,
        codecs,
    )
}
ARCHITECTURES = {row.name: row for rows in KINDS.values() for row in rows}
DRAFTS = {row.name: row for row in drafts.ROWS}
DRAFTS_OF_STREAMS = {row.name: row for row in drafts.OF_STREAMS}


def find_architecture(name: str) -> Architecture:
    """The row of an architecture; ModelError names an unknown one and lists the others."""
    if name in DRAFTS:
        raise ModelError(f"{name} drafts for another model, and is not served by itself")
    if name not in ARCHITECTURES:
        known = ", ".join(sorted(ARCHITECTURES))
        raise ModelError(f"unknown architecture {name!r}; supported: {known}")
    return ARCHITECTURES[name]
