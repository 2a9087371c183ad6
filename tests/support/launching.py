"""Running launchers once, and getting activations into and out of the device.

Activations are read back by a product with the identity, so nothing here knows their layout.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec.structs import replace

from gguf_serve.kernels.matrix.matmul import matmul
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import N_COUNTS, Counts, Tape
from gguf_serve.kernels.opencl.tensor import empty, read, upload
from gguf_serve.kernels.quantization.activations import Activations, activations
from gguf_serve.kernels.quantization.weights import Matrix, pack, raw_matrix
from gguf_serve.kernels.rows.norm import quantize

Floats = npt.NDArray[np.float32]
CODE_MAX = 16383  # the largest code of quantized activations (quantization/activations.py)
BYTE_MAX = 127  # the same of 8 bits
SPAN_CODE_MAX, SPAN_SUM_MAX = 32767, 524224  # with spans: of one, of the magnitudes of 64


def run(
    device: Device, programs: Programs, counts: int | Counts, *records: Callable[[Tape], None]
) -> None:
    """Record launches, run them once with these counts (one number: all alike), and wait."""
    tape = Tape(device, programs)
    for record in records:
        record(tape)
    tape.run((counts,) * N_COUNTS if isinstance(counts, int) else counts)
    device.finish()


def product(
    device: Device,
    programs: Programs,
    w: Matrix,
    x: Activations,
    n: int,
    tile: int,
    before: Floats,
    **options: Any,
) -> Floats:
    """``before`` after matmul() of n tokens into it."""
    out, counts = upload(device, before), upload(device, np.full(N_COUNTS, n, np.int32))
    run(device, programs, n, lambda tape: matmul(tape, w, x, out, counts, tile=tile, **options))
    result: Floats = read(out, None, device.queue)
    return result


def exact_activations(
    n_rows: int, n_cols: int, rng: np.random.Generator, code_max: int = CODE_MAX
) -> Floats:
    """Floats that quantized activations hold exactly: scales that are powers of two."""
    codes = rng.integers(-code_max, code_max + 1, (n_rows, n_cols // 32, 32))
    codes[..., 5] = rng.choice([-code_max, code_max], codes.shape[:2])
    scales = 2.0 ** rng.integers(-16, -11, (n_rows, n_cols // 32, 1))
    return (codes * scales).reshape(n_rows, n_cols).astype(np.float32)


def exact_spans(n_rows: int, n_cols: int, rng: np.random.Generator) -> Floats:
    """The same for activations with spans: of 256 columns, whose largest code is one of 16 bits."""
    codes = rng.integers(-11000, 11001, (n_rows, n_cols // 256, 256))
    codes[..., 77] = rng.choice([-SPAN_CODE_MAX, SPAN_CODE_MAX], codes.shape[:2])
    scales = 2.0 ** rng.integers(-16, -11, (n_rows, n_cols // 256, 1))
    return (codes * scales).reshape(n_rows, n_cols).astype(np.float32)


def quantized(
    device: Device, programs: Programs, values: Floats, *, spans: bool = False, bytes: bool = False
) -> Activations:
    """Quantized activations of these values, without the values."""
    room = activations(device, *values.shape, quantized=True, spans=spans, bytes=bytes)
    both = replace(room, values=upload(device, values))
    run(device, programs, len(values), lambda tape: quantize(tape, both))
    return room


def unquantized(device: Device, programs: Programs, x: Activations, n_rows: int) -> Floats:
    """The values of quantized activations: their product with an identity of type Q8_0."""
    n = x.n_cols
    blocks = np.zeros((n, n // 32, 34), np.uint8)
    blocks[..., :2] = np.array([1], np.float16).view(np.uint8)
    blocks[np.arange(n), np.arange(n) // 32, 2 + np.arange(n) % 32] = 1
    identity = pack(device, programs, [raw_matrix(blocks.reshape(-1), "Q8_0", n, n)])
    out = empty(device, (n_rows, n))
    counts = upload(device, np.full(N_COUNTS, n_rows, np.int32))
    codes_only = replace(x, values=None)
    run(
        device, programs, n_rows,
        lambda tape: matmul(tape, identity, codes_only, out, counts, tile=8),
    )  # fmt: skip
    result: Floats = read(out, None, device.queue)
    return result
