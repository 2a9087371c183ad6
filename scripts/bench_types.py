"""Measures the matrix kernels for every tensor type, in both kernel families.

    python scripts/bench_types.py [--device NAME] [--family simd] [--types Q4_0,Q4_K]

One token: a matrix of 16384 x 4096, bytes of packed weights and weights per second. 512 tokens:
one of 2048 x 2048, multiply-adds per second. The best of several runs, on random bytes.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gguf_serve.kernels.matrix.matmul import matmul
from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import N_COUNTS, Tape
from gguf_serve.kernels.opencl.tensor import empty, upload
from gguf_serve.kernels.quantization.activations import Activations, activations, takes_bytes
from gguf_serve.kernels.quantization.quants import SUPPORTED_TYPES, by_name
from gguf_serve.kernels.quantization.weights import Matrix, pack, raw_matrix
from gguf_serve.kernels.rows.norm import quantize

VECTOR = (16384, 4096)
PROMPT = (2048, 2048)
N_TOKENS = 512
TILE = 32
SECONDS = 0.3  # of repetitions, for each number


def random_bytes(name: str, n_weights: int) -> npt.NDArray[np.uint8]:
    """Weights of random bytes or, of float types, normal numbers; neither infinite nor subnormal,
    which would cost time of their own."""
    rng, kind = np.random.default_rng(1), by_name(name)
    normal = rng.standard_normal(1 << 18, dtype=np.float32)
    if name == "F32":
        some = normal.view(np.uint8)
    elif name == "F16":
        some = normal.astype(np.float16).view(np.uint8)
    elif name == "BF16":
        some = np.ascontiguousarray(normal.view(np.uint16)[1::2]).view(np.uint8)
    else:
        n_blocks = (1 << 20) // kind.block_bytes
        blocks = rng.integers(0, 256, (n_blocks, kind.block_bytes), dtype=np.uint8)
        blocks &= 0x3B  # finite halves, wherever they are
        blocks[:, :1] |= 0x40 if name == "MXFP4" else 0  # 2^-64 or more
        some = blocks.reshape(-1)
    return np.resize(some, n_weights // kind.block_elements * kind.block_bytes)


def random_matrix(device: Device, programs: Programs, name: str, shape: tuple[int, int]) -> Matrix:
    data = random_bytes(name, shape[0] * shape[1])
    return pack(device, programs, [raw_matrix(data, name, *shape)])


def inputs(device: Device, programs: Programs, w: Matrix, n: int) -> Activations:
    """Random activations of n tokens in the form that the matrix wants."""
    values = np.random.default_rng(2).standard_normal((n, w.n_cols), dtype=np.float32)
    floats = Activations(w.n_cols, upload(device, values))
    if w.is_float:
        return floats
    made = activations(device, n, w.n_cols, quantized=True, bytes=takes_bytes(device, [w]))
    tape = Tape(device, programs)
    quantize(tape, Activations(w.n_cols, floats.values, made.codes, made.scales))
    tape.run((n,) * N_COUNTS)
    device.finish()  # the floats are freed
    return made


def seconds(device: Device, programs: Programs, w: Matrix, n: int, tile: int) -> float:
    """The shortest time of a product with n tokens."""
    counts = upload(device, np.full(N_COUNTS, n, np.int32))
    x, out = inputs(device, programs, w, n), empty(device, (n, w.n_rows))
    tape = Tape(device, programs)
    matmul(tape, w, x, out, counts, tile=tile)
    times: list[float] = []
    while sum(times) < SECONDS or len(times) < 3:
        start = time.perf_counter()
        tape.run((n,) * N_COUNTS)
        device.finish()
        times.append(time.perf_counter() - start)
    return min(times)


def measure(device: Device, programs: Programs, name: str) -> tuple[float, float, float, float]:
    """Bits per weight packed, GB/s and Gweights/s of one token, GMAC/s of a prompt."""
    w = random_matrix(device, programs, name, VECTOR)
    n_weights, once = w.n_rows * w.n_cols, seconds(device, programs, w, 1, 1)
    bits, rate = 8 * w.n_bytes / n_weights, w.n_bytes / once / 1e9
    w.buffer.release()
    w = random_matrix(device, programs, name, PROMPT)
    macs = w.n_rows * w.n_cols * N_TOKENS
    prompt = macs / seconds(device, programs, w, N_TOKENS, TILE) / 1e9
    w.buffer.release()
    return bits, rate, n_weights / once / 1e9, prompt


def table(device: Device, names: Sequence[str]) -> None:
    programs = Programs(device)
    print(f"\n{device.info.name}, {device.family}\n")
    print("| type | bits in file | packed | GB/s | Gweights/s | of Q4_0's | GMAC/s, 512 tokens |")
    print("|---|---|---|---|---|---|---|")
    reference = measure(device, programs, "Q4_0")[2]
    for name in names:
        kind = by_name(name)
        bits, rate, weights, macs = measure(device, programs, name)
        print(
            f"| {name} | {8 * kind.block_bytes / kind.block_elements:.2f} | {bits:.2f} "
            f"| {rate:.1f} | {weights:.1f} | {100 * weights / reference:.0f}% | {macs:.0f} |",
            flush=True,
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--device", default=None, help="as serve --device")
    parser.add_argument("--family", choices=("simd", "simt"), help="one kernel family only")
    parser.add_argument("--types", default=",".join(SUPPORTED_TYPES), help="comma-separated")
    args = parser.parse_args()
    names = args.types.split(",")
    unknown = [name for name in names if name not in SUPPORTED_TYPES]
    if unknown:
        parser.error(
            f"no kernels for {', '.join(unknown)}; there are: {', '.join(SUPPORTED_TYPES)}"
        )
    is_cpu = open_device(args.device).is_simd
    families = [args.family] if args.family else ["simd", "simt"] if is_cpu else ["simt"]
    for family in families:
        table(open_device(args.device, family=family), names)


if __name__ == "__main__":
    main()
