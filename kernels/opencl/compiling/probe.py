"""A product of shorts or bytes in one of the forms of features.py, tried on a device.

Only in a process that may end: a compiler that does not know the form's instruction ends it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from gguf_serve.kernels.opencl.sources import SOURCES

if TYPE_CHECKING:
    import pyopencl as cl

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


def works(context: cl.Context, form: str, *, pairs: bool) -> bool:
    """Build and run a product in a form, of pairs of shorts or of four bytes: whether it is
    right. A pyopencl error for one that does not compile; it may end the process."""
    import pyopencl as cl

    queue = cl.CommandQueue(context)
    options = [f"-I{SOURCES}", f"-D{form}"]
    source = PAIR_PROBE if pairs else BYTE_PROBE
    kernel = cl.Kernel(cl.Program(context, source).build(options), "probe")
    rng = np.random.default_rng(0)
    if pairs:
        a, b = rng.integers(-20000, 20000, (2, 32)).astype(np.int16)
    else:
        a = rng.integers(0, 64, 64).astype(np.uint8)
        b = rng.integers(-127, 128, 64).astype(np.int8)
    c = rng.integers(-1000, 1000, 16).astype(np.int32)
    expected = c + (a.astype(np.int32) * b).reshape(16, -1).sum(1)
    flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
    buffers = [cl.Buffer(context, flags, hostbuf=x) for x in (a, b, c)]
    kernel.set_args(*buffers)
    cl.enqueue_nd_range_kernel(queue, kernel, (1,), (1,))
    cl.enqueue_copy(queue, c, buffers[2])
    return bool((c == expected).all())
