"""Which device computes which part of a model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Placement:
    """Devices by their index among those in use: of the embedding, of the mixers and of the FFN
    of each layer, and of the output layer. A part's weights lie where it is computed, and so
    does what its layer keeps in the KV cache."""

    embedding: int
    mixers: tuple[int, ...]
    ffns: tuple[int, ...]
    output: int


def on_one_device(n_layers: int) -> Placement:
    """All of a model on the first device."""
    return Placement(0, (0,) * n_layers, (0,) * n_layers, 0)
