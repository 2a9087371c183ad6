"""What a CPU device's compiler can do beyond OpenCL C, found out by trying.

OpenCL C has no name for the x86 instructions that multiply and add pairs of shorts into
ints (VNNI), or bytes, and compilers do not find them by themselves. They do take LLVM's
intrinsic under an assembler label, but one that does not know it, or knows it with other types,
ends the process. So each form is tried in a process of its own, once per machine and driver; the
answer is kept in the user's cache folder.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import gguf_serve
from gguf_serve.kernels.opencl.cache_folder import cache_folder
from gguf_serve.kernels.opencl.platforms import DeviceInfo, list_devices, platform_devices
from gguf_serve.kernels.opencl.sources import SOURCES

# Defines of lanes.cl for products of shorts, and of byte_products.cl for those of bytes; best
# first, those after the first that works are not tried. With each, the processor's flags that
# allow it.
_VNNI_512, _VNNI_256 = ("avx512_vnni",), ("avx_vnni", "avx512_vnni")
PAIR_FORMS = {
    "DOT_PAIRS_512": _VNNI_512, "DOT_INTS_512": _VNNI_512,
    "DOT_PAIRS_256": _VNNI_256, "DOT_INTS_256": _VNNI_256,
}  # fmt: skip
BYTE_FORMS = {
    "DOT_BYTES_512": _VNNI_512, "DOT_BYTE_INTS_512": _VNNI_512,
    "DOT_BYTES_256": _VNNI_256, "DOT_BYTE_INTS_256": _VNNI_256, "MADD_BYTES_256": ("avx2",),
}  # fmt: skip
FORMS = (*PAIR_FORMS, *BYTE_FORMS)
PROBE_SECONDS = 60

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


def cpu_flags() -> frozenset[str]:
    """The processor's feature flags as Linux names them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    return frozenset(next(lines, "").partition(":")[2].split())


def dot_defines(info: DeviceInfo) -> tuple[str, ...]:
    """The defines of the best forms that work on this CPU device: at most one for products of
    shorts, and one for those of bytes."""
    flags = cpu_flags()
    asked = {
        _key(info, flags, forms): forms
        for candidates in (PAIR_FORMS, BYTE_FORMS)
        if (forms := [form for form, needed in candidates.items() if flags.intersection(needed)])
    }
    known = _read_cache()
    if missing := [key for key in asked if key not in known]:
        with ThreadPoolExecutor(len(missing)) as pool:  # which wait for processes
            answers = pool.map(lambda key: _first(info, asked[key]), missing)
            found = {
                key: form for key, form in zip(missing, answers, strict=True) if form is not None
            }
        known = {**_read_cache(), **found}
        _write_cache(known)
    return tuple(known[key] for key in asked if known.get(key))


def _key(info: DeviceInfo, flags: Collection[str], forms: Sequence[str]) -> str:
    parts = [info.name, info.platform, info.driver, *sorted(flags), *forms]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _first(info: DeviceInfo, forms: Sequence[str]) -> str | None:
    """The first form that works, "" if none does; None if there was no answer."""
    try:
        return next((form for form in forms if _works(info.index, form)), "")
    except subprocess.TimeoutExpired:  # on a busy machine; the next start asks again
        return None


def _cache_path() -> Path | None:
    """None: the user has no home."""
    folder = cache_folder()
    return None if folder is None else folder / "features.json"


def _read_cache() -> Mapping[str, str]:
    path = _cache_path()
    try:
        known = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return (
        {k: v for k, v in known.items() if v in FORMS or v == ""} if isinstance(known, dict) else {}
    )


def _write_cache(known: Mapping[str, str]) -> None:
    """Best effort: without a cache folder the next start tries again."""
    path = _cache_path()
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(known, file)
        os.replace(file.name, path)
    except OSError:
        pass


def _works(index: int, form: str) -> bool:
    command = [sys.executable, "-m", "gguf_serve.kernels.opencl.features", str(index), form]
    root = str(Path(gguf_serve.__file__).resolve().parents[1])
    path = os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH", "")]))
    try:
        result = subprocess.run(
            command, env={**os.environ, "PYTHONPATH": path}, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=PROBE_SECONDS, check=False,
        )  # fmt: skip
    except OSError:
        return False
    return result.returncode == 0 and result.stdout.strip() == b"works"


def _probe(index: int, form: str) -> bool:
    """Build and run a product in one form; may end the process."""
    import numpy as np
    import pyopencl as cl

    assert list_devices()
    context = cl.Context([platform_devices()[index]])
    queue = cl.CommandQueue(context)
    options = [f"-I{SOURCES}", f"-D{form}"]
    source = PAIR_PROBE if form in PAIR_FORMS else BYTE_PROBE
    kernel = cl.Kernel(cl.Program(context, source).build(options), "probe")
    rng = np.random.default_rng(0)
    if form in PAIR_FORMS:
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


if __name__ == "__main__" and _probe(int(sys.argv[1]), sys.argv[2]):
    print("works")
