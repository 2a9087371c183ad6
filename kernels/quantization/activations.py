"""Rows of activations in the forms that matrices read: floats, or integer codes with scales."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tensor import Tensor, empty
from gguf_serve.kernels.quantization.packing import BLOCK, SPAN
from gguf_serve.kernels.quantization.weights import Matrix


class Activations(Struct, frozen=True):
    """Rows of ``n_cols`` values, as floats or as integer codes with scales per 32 (or both).

    codes: int16 [n, n_cols], in -16383..16383 (activation.cl says why); scales: float32
    [n, n_cols / 32, 2], the scale and scale * sum of the codes. With ``spans`` SPAN blocks have
    the same scale, and codes of 16 bits; norm() alone can make them. Or codes are int8, in
    -127..127 and an order of their own, with scales [n, n_cols / 32, 4] (activation.cl again).
    """

    n_cols: int
    values: Tensor | None = None
    codes: Tensor | None = None
    scales: Tensor | None = None
    spans: bool = False

    @property
    def quantized(self) -> bool:
        return self.codes is not None

    @property
    def bytes(self) -> bool:
        """Whether the codes have 8 bits."""
        return self.codes is not None and self.codes.dtype == np.int8

    @property
    def code_defines(self) -> list[str]:
        """What tells activation.cl how to write the codes."""
        return ["CODE_BYTES"] * self.bytes + [f"OUT_SPAN={SPAN}"] * self.spans


def activations(
    device: Device,
    n_rows: int,
    n_cols: int,
    *,
    quantized: bool,
    spans: bool = False,
    bytes: bool = False,
) -> Activations:
    """Room for ``n_rows`` rows of activations; ValueError if n_cols are not whole blocks."""
    if not quantized:
        return Activations(n_cols, values=empty(device, (n_rows, n_cols)))
    block = BLOCK * SPAN if spans else BLOCK
    if n_cols % block:
        raise ValueError(f"{n_cols} columns cannot be quantized in blocks of {block}")
    codes, scales = (empty(device, *like) for like in code_shapes(n_rows, n_cols, bytes=bytes))
    return Activations(n_cols, codes=codes, scales=scales, spans=spans)


def code_shapes(
    n_rows: int, n_cols: int, *, bytes: bool
) -> tuple[tuple[tuple[int, ...], type[np.generic]], tuple[tuple[int, ...], type[np.generic]]]:
    """(shape, element type) of the codes of so many rows, and of their scales."""
    codes = (n_rows, n_cols), np.int8 if bytes else np.int16
    return codes, ((n_rows, n_cols // BLOCK, 4 if bytes else 2), np.float32)


def wants_spans(device: Device, readers: Sequence[Matrix]) -> bool:
    """Whether activations that these matrices read had better have spans.

    Not without instructions for sums of products: with PoCL prompts take 1.7 x as long with them.
    """
    whole = all(w.n_cols % (BLOCK * SPAN) == 0 for w in readers)
    spanned = any(w.type.takes_spans for w in readers)
    return device.capabilities.multiplies_pairs and whole and spanned


def takes_bytes(device: Device, readers: Sequence[Matrix]) -> bool:
    """Whether activations that these matrices read have codes of 8 bits on this device."""
    if device.byte_codes == "none" or not all(w.type.takes_bytes for w in readers):
        return False
    return device.byte_codes == "all" or all(w.type.has_super_blocks for w in readers)
