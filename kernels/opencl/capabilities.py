"""What a device can do, by which kernel variants are chosen and sized."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from msgspec import Struct

# Extensions, and flags of processors, with which tiles of matrices are multiplied at once.
MATRIX_EXTENSIONS = (
    "cl_khr_cooperative_matrix",
    "cl_intel_subgroup_matrix_multiply_accumulate",
    "cl_arm_matrix_multiply",
    "cl_qcom_ml_ops",
)
MATRIX_FLAGS = ("amx_int8", "amx_bf16")
# NVIDIA's compute capabilities from which PTX has dp4a, and mma on halves of 8 columns.
DP4A_FROM, MMA_FROM = (6, 1), (7, 5)
# What AMD calls its instructions for tiles of matrices, by the beginnings of architectures.
AMD_MATRIX = {"gfx11": "wmma", "gfx908": "mfma", "gfx90a": "mfma", "gfx94": "mfma"}
# Items that multiply tiles of halves together, by the instruction that does it (mma.cl).
TILE_LANES = {
    "MMA_PTX_16": 32, "MMA_PTX_8": 32, "MMA_WMMA": 32, "MMA_MFMA": 64, "MMA_DPAS": 16,
    "MMA_BY_HAND": 32,
}  # fmt: skip
# Which weights are multiplied with activations of 8 bits, where all that read them are: none, those
# with super-blocks (K-quants), or all that can be.
ByteCodes = Literal["none", "some", "all"]


class Capabilities(Struct, frozen=True):
    """Of a device, as its driver says; ``forms`` are found by trying (features.py)."""

    work_group: int = 1024  # most work-items of a group
    local_bytes: int = 32 << 10  # memory that a group shares
    subgroup: int = 0  # work-items that run in lockstep, 1 on a CPU; 0 if the driver does not say
    halves: bool = False  # arithmetic in half precision (cl_khr_fp16)
    byte_dots: bool = False  # sums of four products of bytes (cl_khr_integer_dot_product, dp4a)
    matrix: tuple[str, ...] = ()  # MATRIX_EXTENSIONS, MATRIX_FLAGS, "mma", AMD_MATRIX that it has
    architecture: str = ""  # of a GPU, as "sm_90" or "gfx1100", where its name or driver says it
    # Defines for a CPU's sums of products, of pairs and of bytes, and for a GPU's, of tiles and of
    # shorts.
    forms: tuple[str, ...] = ()

    @property
    def multiplies_pairs(self) -> bool:
        """Whether there are instructions for sums of products of shorts."""
        return any(form.startswith(("DOT_PAIRS", "DOT_INTS")) for form in self.forms)

    @property
    def byte_codes(self) -> ByteCodes:
        """For which weights a CPU had better use its instructions for bytes.

        Without others, for all. Products of shorts are exact, and half as fast: enough for small
        models, which have few K-quants, and where tiles of AMX multiply both alike.
        """
        if not any(form.startswith(("DOT_BYTE", "MADD_BYTES")) for form in self.forms):
            return "none"
        if not self.multiplies_pairs:
            return "all"
        return "none" if "TILE_BYTES" in self.forms else "some"

    @property
    def tile_form(self) -> str:
        """By what a GPU multiplies tiles of halves, of TILE_LANES; "" if there is nothing."""
        return next((form for form in self.forms if form in TILE_LANES), "")

    @property
    def short_form(self) -> str:
        """By what a GPU multiplies shorts with codes of weights (dots.cl); "": in plain C."""
        return next((form for form in self.forms if form.startswith("SHORTS_")), "")

    def __str__(self) -> str:
        words = [f"work-groups of {self.work_group}", f"{self.local_bytes >> 10} KiB local"]
        if self.subgroup > 1:
            words.append(f"subgroups of {self.subgroup}")
        words += ["halves"] * self.halves + ["byte dot products"] * self.byte_dots
        return ", ".join(filter(None, [self.architecture, *words, *self.matrix]))


def read_capabilities(raw: Any, *, is_cpu: bool) -> Capabilities:
    """Of a pyopencl device, without ``forms``."""
    flags = cpu_flags() if is_cpu else ()
    extensions = set(raw.extensions.split())
    compute = _compute_capability(raw)
    dots = "cl_khr_integer_dot_product" in extensions or compute >= DP4A_FROM
    matrix = [name for name in MATRIX_EXTENSIONS if name in extensions]
    matrix += [name for name in MATRIX_FLAGS if name in flags] + ["mma"] * (compute >= MMA_FROM)
    architecture = _architecture(raw.name, compute)
    matrix += [name for begin, name in AMD_MATRIX.items() if architecture.startswith(begin)]
    return Capabilities(
        work_group=int(raw.max_work_group_size),
        local_bytes=int(raw.local_mem_size),
        subgroup=1 if is_cpu else _subgroup(raw),
        halves="cl_khr_fp16" in extensions,
        byte_dots=dots,
        matrix=tuple(matrix),
        architecture=architecture,
    )


def cpu_flags() -> frozenset[str]:
    """The processor's feature flags as Linux names them; empty elsewhere."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return frozenset()
    lines = (line for line in text.splitlines() if line.startswith("flags"))
    return frozenset(next(lines, "").partition(":")[2].split())


def _compute_capability(raw: Any) -> tuple[int, int]:
    """Of NVIDIA's GPUs; (0, 0) of others."""
    major, minor = (_asked(raw, f"compute_capability_{part}_nv") for part in ("major", "minor"))
    return major, minor


def _subgroup(raw: Any) -> int:
    return _asked(raw, "warp_size_nv") or _asked(raw, "wavefront_width_amd")


def _asked(raw: Any, name: str) -> int:
    """A number that only some drivers, and versions of pyopencl, know; else 0."""
    import pyopencl as cl

    try:
        return int(getattr(raw, name))
    except (AttributeError, cl.Error):
        return 0


def _architecture(name: str, compute: tuple[int, int]) -> str:
    if any(compute):
        return f"sm_{compute[0]}{compute[1]}"
    first = name.split(":")[0].strip()
    return first if first.startswith("gfx") else ""
