"""Matrices of a file that have a number beside them which multiplies all of their values."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from gguf_serve.engine.errors import ModelError
from gguf_serve.kernels.quantization.quants import by_name
from gguf_serve.kernels.quantization.weights import RawMatrix


def with_scales_inside(name: str, raws: Sequence[RawMatrix]) -> list[RawMatrix]:
    """Experts of one type with their scales in their values, if they have any: floats become
    float32, of blocks the half-precision scales are multiplied, which rounds each to 11 bits.

    ModelError names a tensor whose type has neither."""
    if all(raw.scale == 1 for raw in raws) or raws[0].type.has_matrix_scale:
        return list(raws)
    return [_floats(raw) if raw.type.is_float else _blocks(name, raw) for raw in raws]


def _floats(raw: RawMatrix) -> RawMatrix:
    if raw.type.name == "BF16":
        values = (raw.data.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        kind = np.float16 if raw.type.name == "F16" else np.float32
        values = raw.data.view(kind).astype(np.float32)
    data = (values * np.float32(raw.scale)).view(np.uint8)
    return replace(raw, data=data, type=by_name("F32"), scale=1.0)


def _blocks(name: str, raw: RawMatrix) -> RawMatrix:
    offsets = raw.type.half_offsets
    if not offsets:
        kind = raw.type.name
        raise ModelError(f"{name}.scale is {raw.scale:g}, which experts of {kind} cannot have")
    data: npt.NDArray[np.uint8] = raw.data.copy()
    blocks = data.reshape(-1, raw.type.block_bytes)
    for at in offsets:
        halves = blocks[:, at : at + 2].copy().view(np.float16).astype(np.float32)
        scaled = (halves * np.float32(raw.scale)).astype(np.float16)
        if not np.isfinite(scaled).all():
            raise ModelError(f"{name}.scale is {raw.scale:g}, too large for {raw.type.name}")
        blocks[:, at : at + 2] = scaled.view(np.uint8)
    return replace(raw, data=data, scale=1.0)
