"""Metadata that have a value for every layer, or one for all."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from typing import Any

import numpy as np

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile


def of_layers(gguf: GGUFFile, key: str, values: Sequence[Any], n_layers: int) -> Sequence[Any]:
    """Of the layers that tokens go through; ModelError unless the file has one for each."""
    if len(values) not in (n_layers, gguf.get_int(gguf.arch_key("block_count"))):
        raise ModelError(f"{gguf.path}: {key} has {len(values)} values for {n_layers} layers")
    return values[:n_layers]


def per_layer_ints(
    gguf: GGUFFile, name: str, n_layers: int, default: Sequence[int] | None
) -> tuple[int, ...]:
    """A number for every layer: the file has one for all, or an array."""
    key = gguf.arch_key(name)
    value = gguf.metadata.get(key)
    if value is None and default is not None:
        return tuple(default)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        return tuple(int(v) for v in of_layers(gguf, key, value.tolist(), n_layers))
    return (gguf.get_int(key),) * n_layers


def per_layer_floats(
    gguf: GGUFFile, name: str, n_layers: int, default: float | tuple[float, ...] = 0.0
) -> tuple[float, ...]:
    """The same for floats."""
    key = gguf.arch_key(name)
    value = gguf.metadata.get(key, default)
    if not isinstance(value, np.ndarray | tuple):
        return (gguf.get_float(key, default if isinstance(default, float) else None),) * n_layers
    found = tuple(float(v) for v in value)[:n_layers]
    if not np.isfinite(found).all():
        raise ModelError(f"{gguf.path}: {key} has {next(v for v in found if not isfinite(v))}")
    return found
