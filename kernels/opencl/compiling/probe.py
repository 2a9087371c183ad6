"""A product of shorts, bytes or tiles in one of the forms of features.py, tried on a device.

Only in a process that may end: a compiler that does not know the form's instruction ends it.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from gguf_serve.kernels.opencl.capabilities import TILE_LANES
from gguf_serve.kernels.opencl.sources import OPTIONS

if TYPE_CHECKING:
    import pyopencl as cl

Kind = Literal["pairs", "bytes", "tiles", "halves", "shorts"]
# Linux's arch_prctl, on x86-64, and the state that a process asks for before it uses it.
ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA = 158, 0x1023, 18

# 16 rows of two products of shorts, or of four of bytes of which a's are not negative; with
# SIGNED_CODES, for which every intrinsic that is declared is used.
PAIR_PROBE = """
#include "include/lanes.cl"
kernel void probe(global const short* a, global const short* b, global int* c) {
    vpair x, y;
    for (int i = 0; i < 32; i++) { x[i] = a[i]; y[i] = b[i]; }
    vstore16(madd(x, y, vload16(0, c)), 0, c);
}
"""
BYTE_PROBE = """
#define SIGNED_CODES
#include "include/lanes.cl"
#include "include/byte_products.cl"
kernel void probe(global const int* a, global const int* b, global int* c) {
    const int16 w = vload16(0, a), x = vload16(0, b), sum = vload16(0, c);
#ifdef MADD_BYTES_256
    const short16 one = 1, low = madd_quad(w.lo, x.lo, 0), high = madd_quad(w.hi, x.hi, 0);
    vstore16(sum + (int16)(vpmaddwd(low, one), vpmaddwd(high, one)), 0, c);
#else
    vstore16(dot_quad(w, x, sum), 0, c);
#endif
}
"""
# A tile of 16 rows times one of 16 columns, 64 bytes each.
TILE_PROBE = """
#include "include/lanes.cl"
#include "include/tiles.cl"
kernel void probe(global const int* a, global const int* b, global int* c) {
    int16 x[16], y[16], sum[16];
    for (int i = 0; i < 16; i++) { x[i] = vload16(i, a); y[i] = vload16(i, b); }
    begin_tiles();
    TILE_ZERO(4);
    TILE_LOAD(0, x);
    TILE_LOAD(1, y);
    TILE_ADD_PRODUCT(4, 0, 1);
    TILE_STORE(4, sum);
    end_tiles();
    for (int i = 0; i < 16; i++) vstore16(sum[i] + vload16(i, c), i, c);
}
"""
# A tile of 16 rows times one of 16 tokens, 16 halves each, by a GPU's subgroup.
HALVES_PROBE = """
#define SIMT
#include "include/lanes.cl"
#include "include/mma.cl"
kernel __attribute__((MMA_SUBGROUP reqd_work_group_size(MMA_LANES, 1, 1)))
void probe(global const uint* a, global const uint* b, global float* c) {
    local uint rows[16 * MMA_STRIDE], tokens[16 * MMA_STRIDE];
    MMA_SHARED(MMA_LANES);
    const int lane = get_local_id(0);
    for (int i = lane; i < 128; i += MMA_LANES) {
        rows[i / 8 * MMA_STRIDE + i % 8] = a[i];
        tokens[i / 8 * MMA_STRIDE + i % 8] = b[i];
    }
    barrier(CLK_LOCAL_MEM_FENCE);
    const mma_tile x = mma_load_a(rows, lane), y = mma_load_b(tokens, lane);
    mma_sums sums;
    MMA_UNROLL
    for (int i = 0; i < MMA_SUMS; i++)
        sums.v[i] = c[MMA_ROW(i, lane) * 16 + MMA_TOKEN(i, lane)];
    MMA(sums, x, y, lane);
    MMA_UNROLL
    for (int i = 0; i < MMA_SUMS; i++)
        c[MMA_ROW(i, lane) * 16 + MMA_TOKEN(i, lane)] = sums.v[i];
}
"""
# Quads of weights, which are codes of a table, signed and unsigned, times shorts.
QUADS = 64
LOW, HIGH = 0x60473B2B1F0D0100, 0xFDEFD9C5B3A1807F
SHORTS_PROBE = f"""
#define SIMT
#include "include/lanes.cl"
#include "include/dots.cl"
kernel void probe(global const int* a, global const int2* b, global int2* c) {{
    for (int i = 0; i < {QUADS}; i++) {{
#ifdef SHORTS_SDOT2
        const uchar4 at = as_uchar4(a[i]);
        const short2 even = lookup((short2)(at.x, at.z), 0, {LOW:#x}UL, {HIGH:#x}UL);
        const short2 odd = lookup((short2)(at.y, at.w), 0, {LOW:#x}UL, {HIGH:#x}UL);
        const short2 x = as_short2(b[i].x), y = as_short2(b[i].y);
        const short2 by = (short2)(8);
        c[i].x = dot_pair((even << by) >> by, x, dot_pair((odd << by) >> by, y, c[i].x));
        c[i].y = dot_pair(even, x, dot_pair(odd, y, c[i].y));
#else
        const int w = lookup_quad(a[i], {LOW:#x}UL, {HIGH:#x}UL);
        const dot_sum zero = 0;
        c[i].x += dot_total(dot_quad_s(w, b[i].x, b[i].y, zero));
        c[i].y += dot_total(dot_quad_u(w, b[i].x, b[i].y, zero));
#endif
    }}
}}
"""
SOURCE_OF: dict[Kind, str] = {
    "pairs": PAIR_PROBE, "bytes": BYTE_PROBE, "tiles": TILE_PROBE, "halves": HALVES_PROBE,
    "shorts": SHORTS_PROBE,
}  # fmt: skip


def allow_tiles() -> bool:
    """Have the system let this process use tiles, which it must ask for; whether it may."""
    if not sys.platform.startswith("linux") or platform.machine() != "x86_64":
        return False
    system = ctypes.CDLL(None, use_errno=True)
    return bool(system.syscall(ARCH_PRCTL, ARCH_REQ_XCOMP_PERM, XTILEDATA) == 0)


def works(context: cl.Context, form: str, kind: Kind) -> bool:
    """Build and run a product in a form, of that kind: whether it is right. A pyopencl error for
    one that does not compile; it may end the process."""
    import pyopencl as cl

    if kind == "tiles" and not allow_tiles():
        return False
    queue = cl.CommandQueue(context)
    options = [*OPTIONS, f"-D{form}"]
    kernel = cl.Kernel(cl.Program(context, SOURCE_OF[kind]).build(options), "probe")
    *inputs, c, expected = _example(kind)
    flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
    buffers = [cl.Buffer(context, flags, hostbuf=x) for x in (*inputs, c)]
    kernel.set_args(*buffers)
    items = (TILE_LANES.get(form, 1),)
    cl.enqueue_nd_range_kernel(queue, kernel, items, items)
    cl.enqueue_copy(queue, c, buffers[2])
    return bool((c == expected).all())


def _example(kind: Kind) -> tuple[npt.NDArray[np.generic], ...]:
    """Factors a and b, a sum c, and what it becomes."""
    rng = np.random.default_rng(0)
    if kind == "halves":
        x, y = rng.integers(-20, 21, (2, 16, 16)).astype(np.float16)
        sums = rng.integers(-1000, 1000, (16, 16)).astype(np.float32)
        return x, y, sums, sums + x.astype(np.float32) @ y.astype(np.float32).T
    if kind == "shorts":
        codes = rng.integers(0, 16, (QUADS, 4)).astype(np.uint8)
        values = rng.integers(-(2**15), 2**15, (QUADS, 4)).astype(np.int16)
        before = rng.integers(-1000, 1000, (QUADS, 2)).astype(np.int32)
        w = np.array([LOW, HIGH], np.uint64).view(np.uint8)[codes[:, [0, 2, 1, 3]]]
        added = [(bytes_.astype(np.int32) * values).sum(1) for bytes_ in (w.view(np.int8), w)]
        return codes, values, before, before + np.stack(added, 1)
    if kind == "tiles":
        a, b = rng.integers(0, 256, (2, 16, 64)).astype(np.uint8)
        c = rng.integers(-1000, 1000, (16, 16)).astype(np.int32)
        columns = b.reshape(16, 16, 4).transpose(0, 2, 1).reshape(64, 16)
        return a, b, c, c + a.astype(np.int32) @ columns.astype(np.int32)
    if kind == "pairs":
        a, b = rng.integers(-20000, 20000, (2, 32)).astype(np.int16)
    else:
        a = rng.integers(0, 64, 64).astype(np.uint8)
        b = rng.integers(-127, 128, 64).astype(np.int8)
    c = rng.integers(-1000, 1000, 16).astype(np.int32)
    return a, b, c, c + (a.astype(np.int32) * b).reshape(16, -1).sum(1)
