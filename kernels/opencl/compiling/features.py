"""What a device's compiler can do beyond OpenCL C, found out by trying.

OpenCL C has no name for the x86 instructions that multiply and add pairs of shorts into ints
(VNNI), or bytes, or tiles of bytes (AMX), nor for a GPU's that multiply tiles of halves, and
compilers do not find them by themselves. They do take LLVM's intrinsic under an assembler label, or
assembler, but one that does not know it, or knows it with other types, ends the process, and so
does a system that forbids the instruction. So each form is tried in a process that may end
(probe.py, worker.py), once per machine and driver; the answer is kept in the user's cache folder.
What a device says of itself decides which forms are tried, never which are used: kernels are chosen
by those that gave the right sums.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import tempfile
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor

from gguf_serve.kernels.opencl.capabilities import cpu_flags
from gguf_serve.kernels.opencl.compiling.cache_folder import features_path
from gguf_serve.kernels.opencl.compiling.probe import SOURCE_OF, Kind, allow_tiles
from gguf_serve.kernels.opencl.compiling.worker import (
    N_WORKERS,
    NoWorkerError,
    Worker,
    WorkerEndedError,
    keep_worker,
    take_worker,
)
from gguf_serve.kernels.opencl.platforms import DeviceInfo
from gguf_serve.kernels.opencl.sources import INCLUDE, with_included

log = logging.getLogger(__name__)
# Defines of lanes.cl for products of shorts, of byte_products.cl for those of bytes, of dot_amx.cl,
# mma.cl and dots.cl; best first, those after the first that works are not tried. With each, the
# processor's flags that allow it, or the GPU's (_gpu_flags).
_VNNI_512, _VNNI_256 = ("avx512_vnni",), ("avx_vnni", "avx512_vnni")
PAIR_FORMS = {
    "DOT_PAIRS_512": _VNNI_512, "DOT_INTS_512": _VNNI_512,
    "DOT_PAIRS_256": _VNNI_256, "DOT_INTS_256": _VNNI_256,
}  # fmt: skip
BYTE_FORMS = {
    "DOT_BYTES_512": _VNNI_512, "DOT_BYTE_INTS_512": _VNNI_512,
    "DOT_BYTES_256": _VNNI_256, "DOT_BYTE_INTS_256": _VNNI_256, "MADD_BYTES_256": ("avx2",),
}  # fmt: skip
TILE_FORMS = {"TILE_BYTES": ("amx_int8",)}
HALVES_FORMS = {
    "MMA_PTX_16": ("mma",), "MMA_PTX_8": ("mma",), "MMA_WMMA": ("wmma",), "MMA_MFMA": ("mfma",),
    "MMA_DPAS": ("cl_intel_subgroup_matrix_multiply_accumulate",),
}  # fmt: skip
SHORT_FORMS = {
    "SHORTS_DP2A": ("dp2a",), "SHORTS_SDOT2": ("gfx",), "SHORTS_SUDOT4": ("gfx",),
    "SHORTS_PACKED": ("byte_dots",),
}  # fmt: skip
Forms = Mapping[Kind, Mapping[str, tuple[str, ...]]]
CPU_FORMS: Forms = {"pairs": PAIR_FORMS, "bytes": BYTE_FORMS, "tiles": TILE_FORMS}
GPU_FORMS: Forms = {"halves": HALVES_FORMS, "shorts": SHORT_FORMS}
KNOWN = {form for kinds in (CPU_FORMS, GPU_FORMS) for forms in kinds.values() for form in forms}
PROBE_SECONDS = 60
_answers: dict[str, str] = {}  # of this process, which may have no cache folder


def dot_defines(info: DeviceInfo) -> tuple[str, ...]:
    """The defines of the best forms that work on this CPU device: at most one for products of
    shorts, one for those of bytes, and one for those of tiles, if this process may use them."""
    return _working(info, CPU_FORMS, cpu_flags())


def gpu_defines(info: DeviceInfo) -> tuple[str, ...]:
    """The same of a GPU: at most one for products of tiles of halves and one for those of shorts.

    Logs a warning when it is found that none works of those that it may have.
    """
    return _working(info, GPU_FORMS, _gpu_flags(info))


def _gpu_flags(info: DeviceInfo) -> frozenset[str]:
    """Which instructions a GPU may have: none if it is a CPU with the kernels for GPUs."""
    found = info.capabilities
    if info.kind == "cpu":
        return frozenset()
    flags = [*found.matrix, *["byte_dots"] * found.byte_dots]
    flags += ["dp2a"] * (found.byte_dots and found.architecture.startswith("sm_"))
    return frozenset([*flags, *["gfx"] * found.architecture.startswith("gfx")])


def _working(info: DeviceInfo, kinds: Forms, flags: frozenset[str]) -> tuple[str, ...]:
    """Of each kind the first form that its flags allow and that works."""
    asked = _asked(info, kinds, flags)
    known = _read_cache()
    if missing := [key for key in asked if key not in known]:
        with ThreadPoolExecutor(N_WORKERS) as pool:  # which wait for processes
            answers = pool.map(lambda key: _first(info, *asked[key]), missing)
            found = {
                key: form for key, form in zip(missing, answers, strict=True) if form is not None
            }
        _answers.update(found)
        known = _read_cache()
        _write_cache(known)
        if kinds is GPU_FORMS:
            _tell_of_none(info, [asked[key][1] for key in missing if not found.get(key)])
    return tuple(known[key] for key in asked if known.get(key))


def _asked(
    info: DeviceInfo, kinds: Forms, flags: frozenset[str]
) -> dict[str, tuple[Kind, list[str]]]:
    """What is tried, by its key in the cache."""
    return {
        _key(info, flags, kind, forms): (kind, forms)
        for kind, candidates in kinds.items()
        if (forms := [form for form, needed in candidates.items() if flags.intersection(needed)])
        and (kind != "tiles" or allow_tiles())
    }


def reject(info: DeviceInfo, defines: Collection[str]) -> list[str]:
    """Have the forms of a GPU that are among these defines of a program not be used on it again:
    it does not build, though the probes did. Which they are."""
    known, flags = _read_cache(), _gpu_flags(info)
    keys = [key for key in _asked(info, GPU_FORMS, flags) if known.get(key, "") in defines]
    found = [known[key] for key in keys if known.get(key)]
    if found:
        _answers.update(dict.fromkeys(keys, ""))
        _write_cache(_read_cache())
    return found


def _tell_of_none(info: DeviceInfo, kinds: Sequence[Sequence[str]]) -> None:
    for forms in kinds:
        log.warning(
            "%s: no right products by %s: kernels that do without are used",
            info.name, ", ".join(forms),
        )  # fmt: skip


def _key(info: DeviceInfo, flags: Collection[str], kind: Kind, forms: Sequence[str]) -> str:
    """Another one where the device, its driver, or what is tried has changed."""
    source = SOURCE_OF[kind]
    included = [text for name in INCLUDE.findall(source) for text in with_included(name).values()]
    parts = [info.name, info.platform, info.driver, *sorted(flags), *forms, source, *included]
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _first(info: DeviceInfo, kind: Kind, forms: Sequence[str]) -> str | None:
    """The first form that works, "" if none does; None if there was no answer."""
    worker: Worker | None = None
    try:
        for form in forms:
            worker = worker or take_worker(info)
            try:
                if worker.probe(form, PROBE_SECONDS, kind):
                    return form
            except WorkerEndedError as error:
                worker = None
                if error.late:  # on a busy machine; the next start asks again
                    return None
        return ""
    except NoWorkerError as error:
        worker = None
        log.warning("no process can be started to try out instructions in: %s", error)
        return None
    finally:
        if worker is not None:
            keep_worker(worker)


def _read_cache() -> Mapping[str, str]:
    path = features_path()
    try:
        known = {} if path is None else json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        known = {}
    if not isinstance(known, dict):
        known = {}
    return {k: v for k, v in known.items() if v in KNOWN or v == ""} | _answers


def _write_cache(known: Mapping[str, str]) -> None:
    """Best effort: without a cache folder the next start tries again."""
    path = features_path()
    if path is None:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("w", dir=path.parent, delete=False) as file:
            json.dump(known, file)
        os.replace(file.name, path)
    except OSError:
        pass
