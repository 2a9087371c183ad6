"""What kernels do on ARM in a way of their own, by PoCL in an emulated Debian: halves, products."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from debian_root import arm_root, missing

EMULATOR = "qemu-aarch64-static"
PACKAGES = ("python3", "pocl-opencl-icd", "ocl-icd-libopencl1")
PYTHON = "3.13"  # that of the root
PLATFORMS = [f"manylinux_2_{n}_aarch64" for n in (17, 27, 28, 31)]
NEEDED = ("numpy", "pyopencl", "msgspec", "platformdirs")
PROBE = '''
import numpy as np, pyopencl as cl
from gguf_serve.kernels.opencl.compiling.probe import works
from gguf_serve.kernels.opencl.sources import OPTIONS

HALVES = """
#include "include/lanes.cl"
kernel void halves(global const half* p, global float* sixteen, global float* one) {
    for (int i = 0; i < 4096; i++) vstore16(LOAD_HALF(p, i), i, sixteen);
    for (int i = 0; i < 65536; i++) one[i] = load_half(i, p);
}
"""
context = cl.Context([cl.get_platforms()[0].get_devices()[0]])
queue = cl.CommandQueue(context)
halves = np.arange(65536, dtype=np.uint16).view(np.float16)
flags = cl.mem_flags.READ_WRITE | cl.mem_flags.COPY_HOST_PTR
buffers = [cl.Buffer(context, flags, hostbuf=halves)]
buffers += [cl.Buffer(context, flags, hostbuf=np.zeros(65536, np.float32)) for _ in range(2)]
kernel = cl.Kernel(cl.Program(context, HALVES).build(list(OPTIONS)), "halves")
kernel.set_args(*buffers)
cl.enqueue_nd_range_kernel(queue, kernel, (1,), (1,))
with np.errstate(invalid="ignore"):
    expected = halves.astype(np.float32)
for buffer in buffers[1:]:
    found = np.empty(65536, np.float32)
    cl.enqueue_copy(queue, found, buffer)
    assert np.array_equal(found, expected, equal_nan=True)
assert works(context, "PORTABLE", "pairs")
'''


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.skipif(missing(EMULATOR) != "", reason=missing(EMULATOR))
def test_halves_and_products(tmp_path: Path) -> None:
    root = arm_root(tmp_path / "root", PACKAGES, shutil.which(EMULATOR) or EMULATOR)
    root.copy_checkout("/checkout")
    install(root.path / "packages")
    (root.path / "probe.py").write_text(PROBE, encoding="utf-8")
    root.run("python3 /probe.py", PYTHONPATH="/packages:/checkout")


def install(target: Path) -> None:
    """By this machine's pip, which is faster than an emulated one."""
    platforms = [f"--platform={name}" for name in PLATFORMS]
    subprocess.run(
        [sys.executable, "-m", "pip", "install", "--quiet", "--only-binary=:all:", *platforms,
         f"--python-version={PYTHON}", f"--target={target}", *NEEDED],
        check=True,
    )  # fmt: skip
