"""Compiles the kernels for GPUs that are not there, and says what they take of their registers.

    python scripts/check_gpu_compile.py [--targets gfx1100,sm_86] [--only attention_simt] [--all]

clang with libclc (Debian: clang-19, libclc-19) compiles for AMD's GPUs, and with CUDA's ptxas for
NVIDIA's. Printed for each kernel and target: the most registers, bytes of scratch and bytes of
local memory that a program's takes; with --all for each program. Scratch is what registers cannot
hold, as private arrays that are indexed in loops which are not unrolled. Ends with 1 where a
program does not compile or one of the kernels in HOT takes scratch, with 0 and a line without the
tools.

Drivers compile with libraries and options of their own, so their counts differ somewhat.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from variants import gpu, launcher_specs

from gguf_serve.kernels.opencl.program import Spec
from gguf_serve.kernels.opencl.sources import SOURCES

# With what features.py would find on each.
TARGETS: dict[str, tuple[str, ...]] = {
    "gfx90a": ("MMA_MFMA", "SHORTS_SDOT2"), "gfx1030": ("SHORTS_SDOT2",),
    "gfx1100": ("MMA_WMMA", "SHORTS_SUDOT4"), "sm_75": ("MMA_PTX_8", "SHORTS_DP2A"),
    "sm_86": ("MMA_PTX_16", "SHORTS_DP2A"), "sm_90": ("MMA_PTX_16", "SHORTS_DP2A"),
}  # fmt: skip
LIBRARIES = {"amd": "amdgcn--amdhsa.bc", "nvidia": "nvptx64--nvidiacl.bc"}
TRIPLES = {"amd": "amdgcn-amd-amdhsa", "nvidia": "nvptx64-nvidia-nvcl"}
HOT = (
    "matrix/matmul_mma.cl",
    "matrix/matmul_simt.cl",
    "matrix/matvec_simt.cl",
    "attention/attention_simt.cl",
    "attention/attention_combine.cl",
)


@dataclass(frozen=True)
class Use:
    """What a kernel takes: registers of a work-item, bytes of a work-item, of a work-group."""

    registers: int
    scratch: int
    local: int


def compile_for(target: str, spec: Spec, tools: Tools, folder: Path) -> dict[str, Use]:
    """What each kernel of a program takes. Raises RuntimeError with the compiler's message."""
    vendor = _vendor(target)
    assembly = folder / f"{abs(hash((target, spec)))}.s"
    cpu = "-mcpu" if vendor == "amd" else "-march"
    _run([
        tools.clang, "-x", "cl", "-cl-std=CL1.2", "-target", TRIPLES[vendor], f"{cpu}={target}",
        "-O3", "-nogpulib", "-w", f"-I{SOURCES}", "-Xclang", "-mlink-builtin-bitcode", "-Xclang",
        str(tools.library / LIBRARIES[vendor]), *(f"-D{x}" for x in spec.defines), "-S", "-o",
        str(assembly), str(SOURCES / spec.source),
    ])  # fmt: skip
    if vendor == "amd":
        return read_amd(assembly.read_text(encoding="utf-8"))
    log = _run([tools.ptxas or "", "-v", f"-arch={target}", "-o", os.devnull, str(assembly)])
    return read_nvidia(log)


def read_amd(assembly: str) -> dict[str, Use]:
    """What clang's assembly says of its kernels in its metadata."""
    found = {}
    for part in re.split(r"\n  - (?=\.)", assembly.partition("amdhsa.kernels:")[2]):
        if name := re.search(r"\.symbol: +'?(\w+)\.kd\b", part):
            numbers = {k: int(v) for k, v in re.findall(r"\.(\w+): +(\d+)$", part, re.MULTILINE)}
            found[name[1]] = Use(
                numbers["vgpr_count"], numbers["private_segment_fixed_size"],
                numbers["group_segment_fixed_size"],
            )  # fmt: skip
    return _some(found, "assembly")


def read_nvidia(log: str) -> dict[str, Use]:
    """What ``ptxas -v`` says of kernels."""
    found = {}
    for part in log.split("Compiling entry function '")[1:]:
        numbers = [
            re.search(pattern, part)
            for pattern in (
                r"Used (\d+) registers",
                r"(\d+) bytes stack frame",
                r"(\d+) bytes smem",
            )
        ]
        if numbers[0] is not None:
            found[part.partition("'")[0]] = Use(*(int(n[1]) if n else 0 for n in numbers))
    return _some(found, "log")


def _some(found: dict[str, Use], where: str) -> dict[str, Use]:
    if not found:
        raise RuntimeError(f"no kernel in the {where}")
    return found


def _vendor(target: str) -> str:
    return "nvidia" if target.startswith("sm_") else "amd"


def _run(command: Sequence[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    return done.stderr


@dataclass(frozen=True)
class Tools:
    """clang, the folder of libclc, and ptxas if there is one."""

    clang: str
    library: Path
    ptxas: str | None


def find_tools() -> Tools | None:
    """The newest clang and its libclc; None where one is not there."""
    for version in range(22, 15, -1):
        clang = shutil.which(f"clang-{version}")
        folders = (Path("/usr/lib/clc"), Path(f"/usr/lib/llvm-{version}/share/clc"))
        library = next((x for x in folders if (x / LIBRARIES["amd"]).exists()), None)
        if clang and library:
            return Tools(clang, library, shutil.which("ptxas"))
    return None


def wanted(target: str, only: str = "") -> list[Spec]:
    """The programs for a target, of kernels whose file has ``only`` in its name."""
    return [spec for spec in launcher_specs(gpu(TARGETS.get(target, ()))) if only in spec.source]


def results(
    jobs: Sequence[tuple[str, Spec]], tools: Tools
) -> Iterator[tuple[str, Spec, dict[str, Use] | str]]:
    """(target, program, what its kernels take, or why it does not compile)."""

    def compiled(job: tuple[str, Spec]) -> dict[str, Use] | str:
        try:
            return compile_for(*job, tools, Path(folder))
        except RuntimeError as error:
            return str(error)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        for (target, spec), uses in zip(jobs, pool.map(compiled, jobs), strict=True):
            yield target, spec, uses


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--targets", default=",".join(TARGETS), help="default %(default)s")
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose file has it")
    parser.add_argument("--all", action="store_true", help="a line for each program")
    args = parser.parse_args()
    tools = find_tools()
    if tools is None:
        print("clang with libclc is not there: nothing was compiled")
        return 0
    targets = [t for t in args.targets.split(",") if _vendor(t) == "amd" or tools.ptxas]
    jobs = [(target, spec) for target in targets for spec in wanted(target, args.only)]
    most: dict[tuple[str, str], Use] = {}
    failed = False
    for target, spec, uses in results(jobs, tools):
        if isinstance(uses, str):
            print(target, spec.source, *spec.defines, uses, sep=" ")
            failed = True
            continue
        for name, use in uses.items():
            failed |= spec.source in HOT and use.scratch > 0
            if args.all:
                print(target, use, spec.source, name, *spec.defines)
            key = f"{spec.source} {name}", target
            old = most.get(key, Use(0, 0, 0))
            most[key] = Use(*map(max, zip(vars(old).values(), vars(use).values(), strict=True)))
    print(f"{'kernel':36} {'target':8} {'registers':>9} {'scratch':>8} {'local':>7}")
    for (kernel, target), use in sorted(most.items()):
        print(f"{kernel:36} {target:8} {use.registers:9} {use.scratch:8} {use.local:7}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
