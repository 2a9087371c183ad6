"""Random weight matrices of every tensor type, as a file holds them and as numbers."""

from __future__ import annotations

import gguf
import numpy as np
import numpy.typing as npt

from gguf_serve.kernels.quantization.quants import by_name
from gguf_serve.kernels.quantization.weights import RawMatrix, raw_matrix


def random_blocks(
    type_name: str, shape: tuple[int, ...], rng: np.random.Generator
) -> npt.NDArray[np.uint8]:
    """Blocks of random bytes with finite scales of about the same size, uint8 [*shape, bytes]."""
    n_bytes = by_name(type_name).block_bytes
    blocks = rng.integers(0, 256, (*shape, n_bytes), dtype=np.uint8)
    halves = rng.uniform(-0.02, 0.02, (*shape, 4)).astype(np.float16)
    for i, at in enumerate(by_name(type_name).half_offsets):
        blocks[..., at : at + 2] = halves[..., i : i + 1].view(np.uint8)
    if type_name == "IQ1_M":  # four bits of the half at the top of each word of scales
        digits = halves[..., :1].view(np.uint16) >> np.array([0, 4, 8, 12], np.uint16) & 15
        blocks[..., 49::2] = blocks[..., 49::2] & 15 | (digits << 4).astype(np.uint8)
    elif type_name == "MXFP4":  # an exponent
        blocks[..., 0] = rng.integers(110, 125, shape)
    return blocks


def dequantize(data: npt.NDArray[np.uint8], type_name: str) -> npt.NDArray[np.float32]:
    """Rows of blocks as numbers, by the gguf package or, where it is mute, by the definition.

    Q1_0 and Q2_0: a half d, then a bit (d or -d) or two bits (less 1, times d) per element, the
    first in the lowest bits.
    """
    if type_name not in ("Q1_0", "Q2_0"):
        return gguf.quants.dequantize(data, gguf.GGMLQuantizationType[type_name])
    bits = int(type_name[1])
    blocks = data.reshape(len(data), -1, 18)
    d = np.ascontiguousarray(blocks[..., :2]).view(np.float16).astype(np.float32)
    codes = (blocks[..., 2:, None] >> np.arange(0, 8, bits)) & (2**bits - 1)
    factors = np.float32([[-1, 1], [-1, 0, 1, 2]][bits - 1])
    return (d[..., None] * factors[codes]).reshape(len(data), -1)


def random_matrix(
    type_name: str, n_rows: int, n_cols: int, rng: np.random.Generator
) -> tuple[RawMatrix, npt.NDArray[np.float64]]:
    """A matrix of random bytes with finite scales, and its values."""
    if type_name.endswith("_INT13"):
        return _random_halves(type_name, n_rows, n_cols, rng)
    if not by_name(type_name).is_float:
        shape = (n_rows, n_cols // by_name(type_name).block_elements)
        data = random_blocks(type_name, shape, rng).reshape(n_rows, -1)
    else:
        values = rng.standard_normal((n_rows, n_cols), dtype=np.float32)
        data = gguf.quants.quantize(values, gguf.GGMLQuantizationType[type_name]).view(np.uint8)
    numbers = dequantize(data, type_name).astype(np.float64)
    return raw_matrix(np.ascontiguousarray(data).reshape(-1), type_name, n_rows, n_cols), numbers


def _random_halves(
    kind: str, n_rows: int, n_cols: int, rng: np.random.Generator
) -> tuple[RawMatrix, npt.NDArray[np.float64]]:
    """Halves of many exponents, and what they are as integers."""
    wide = np.exp2(rng.integers(-14, 6, (n_rows, n_cols // 32, 1)))
    values = wide * rng.standard_normal((n_rows, n_cols // 32, 32)) ** 3
    values[0, 0] = 0
    name = gguf.GGMLQuantizationType[kind.removesuffix("_INT13")]
    data = gguf.quants.quantize(values.astype(np.float32).reshape(n_rows, n_cols), name)
    halves = dequantize(data.view(np.uint8), name.name).astype(np.float64).reshape(values.shape)
    sums, most = (of(np.abs(halves), axis=2, keepdims=True) for of in (np.sum, np.max))
    scales = np.exp2(np.frexp(np.maximum(sums / (32 * 4096 - 16), most / 32767))[1])
    assert np.abs(np.rint(halves / scales)).sum(2).max() <= 32 * 4096
    numbers = (np.rint(halves / scales) * scales).reshape(n_rows, n_cols)
    return raw_matrix(data.view(np.uint8).reshape(-1), kind, n_rows, n_cols), numbers


def columns(type_name: str) -> int:
    """A telling number of columns: odd for floats, else an odd number of blocks if it can be."""
    if by_name(type_name).is_float:
        return 77
    n = by_name(type_name).block_elements
    return 512 if n == 256 else 3 * n
