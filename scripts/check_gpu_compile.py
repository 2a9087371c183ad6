"""Compiles the kernels for GPUs that are not there, and says what they take of their registers.

    python scripts/check_gpu_compile.py [--targets gfx1100,sm_86] [--only attention_simt] [--all]

clang with libclc (Debian: clang-19, libclc-19) compiles for AMD's GPUs, and with CUDA's ptxas for
NVIDIA's. Printed for each kernel and target: the most registers, bytes of scratch and bytes of
local memory that a variant takes; with --all for each variant. Scratch is what registers cannot
hold, as private arrays that are indexed in loops which are not unrolled. Ends with 1 where a
variant does not compile or one of the kernels in HOT takes scratch, with 0 and a line without the
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
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kernels.attention import AttentionInputs, Mask, attention, split_scratch
from kernels.device import Device, DeviceInfo
from kernels.kv import KV_TYPES, KVPages, KVShape
from kernels.matmul import Activations, activations, glu, matmul
from kernels.moe import Routing, route, routing_buffers
from kernels.norm import NormWeights, norm
from kernels.program import SOURCES
from kernels.quants import by_name
from kernels.rope import RopeStyle, qkv_rows, rope_kv
from kernels.tape import Tape
from kernels.tensor import Tensor, empty
from kernels.topk import topk, topk_buffers
from kernels.weights import SUPPORTED_TYPES, Matrix

TARGETS = ("gfx90a", "gfx1030", "gfx1100", "sm_75", "sm_86", "sm_90")
LIBRARIES = {"amd": "amdgcn--amdhsa.bc", "nvidia": "nvptx64--nvidiacl.bc"}
TRIPLES = {"amd": "amdgcn-amd-amdhsa", "nvidia": "nvptx64-nvidia-nvcl"}
HOT = ("matmul_simt.cl", "matvec_simt.cl", "attention_simt.cl", "attention_combine.cl")
HEADS = ((64, 64), (80, 80), (128, 128), (256, 256), (576, 512))  # of K and V
N_TOKENS, N_COLS, N_HEADS = 64, 512, 8


@dataclass(frozen=True, order=True)
class Variant:
    """A kernel as a launcher asks for it."""

    source: str
    name: str
    defines: tuple[str, ...]


@dataclass(frozen=True)
class Use:
    """What a variant takes: registers of a work-item, bytes of a work-item, of a work-group."""

    registers: int
    scratch: int
    local: int


@dataclass
class Recorder:
    """Takes the place of Programs: notes what would be built."""

    device: Device
    variants: set[Variant] = field(default_factory=set)

    def kernel(self, source: str, name: str, defines: Sequence[str] = ()) -> SimpleNamespace:
        self.variants.add(Variant(source, name, tuple(sorted({*defines, *self.device.defines}))))
        return SimpleNamespace(
            set_args=lambda *args: None, get_work_group_info=lambda *args: 1024
        )  # fmt: skip


def gpu() -> Device:
    """A dry device of no driver."""
    info = DeviceInfo(0, "none", "none", "none", "gpu", 8 << 30, 64)
    context = SimpleNamespace(devices=[None])
    return Device(info, context, None, "simt", False, 1024, 2 << 30, ("SIMT",), is_dry=True)


def variants() -> list[Variant]:
    """Of the kernels that a step spends its time in."""
    device = gpu()
    recorder = Recorder(device)
    tape = Tape(device, recorder)  # type: ignore[arg-type]
    counts = empty(device, (5,), np.int32)
    for name in SUPPORTED_TYPES:
        _record_products(tape, name, counts)
    for kind in KV_TYPES:
        for head in HEADS if kind == "f16" else HEADS[2:3]:
            _record_attention(tape, KVShape(2, *head), kind, counts)
    logits, experts = empty(device, (N_TOKENS, 151936)), empty(device, (N_TOKENS, 128))
    topk(tape, logits, topk_buffers(device, N_TOKENS, 151936, 1))
    for tile in (1, 32):
        buffers = routing_buffers(device, N_TOKENS, 128, 8)
        route(tape, experts, Routing(128, 8, normalize=True), buffers, counts, tile=tile)
    return sorted(recorder.variants)


def _record_products(tape: Tape, name: str, counts: Tensor) -> None:
    kind = by_name(name)
    w = Matrix(None, kind, N_COLS, N_COLS, 0, 0)
    pair = Matrix(None, kind, 2 * N_COLS, N_COLS, 0, 0, paired=True)
    x = activations(tape.device, N_TOKENS, N_COLS, quantized=not w.is_float)
    out = empty(tape.device, (N_TOKENS, N_COLS))
    for tile in (1, 8, 32):
        matmul(tape, w, x, out, counts, tile=tile)
        matmul(tape, w, x, out, counts, tile=tile, add=True)
        glu(
            tape, pair, x, Activations(N_COLS, values=out), counts, activation="silu", tile=tile
        )  # fmt: skip
    weight = empty(tape.device, (N_COLS,))
    norm(tape, out, NormWeights(weight, 1e-5), x)


def _record_attention(tape: Tape, shape: KVShape, kind: str, counts: Tensor) -> None:
    device = tape.device
    layer = KVPages(device, [shape], 4, kind, kind).layers[0]
    width = (N_HEADS + shape.n_kv) * shape.head + shape.n_kv * shape.head_v
    qkv = empty(device, (N_TOKENS, width))
    ints = empty(device, (N_TOKENS, 4), np.int32)
    inputs = AttentionInputs(ints, ints, ints, counts)
    width = N_HEADS * shape.head_v
    out = Activations(width, values=empty(device, (N_TOKENS, width)))
    scratch = split_scratch(device, N_TOKENS, N_HEADS, shape, 512)
    for split in (None, scratch):
        attention(tape, qkv, N_HEADS, layer, inputs, out, Mask(), split=split)
    table = empty(device, (N_TOKENS, shape.head))
    rope_kv(
        tape, qkv_rows(qkv, N_HEADS, shape), N_HEADS, layer, table, ints,
        style=RopeStyle(64, neox=True), scale=1.0,
    )  # fmt: skip


def compile_for(target: str, variant: Variant, tools: Tools, folder: Path) -> Use:
    """Raises RuntimeError with the compiler's message."""
    vendor = _vendor(target)
    assembly = folder / f"{abs(hash((target, variant)))}.s"
    cpu = "-mcpu" if vendor == "amd" else "-march"
    _run([
        tools.clang, "-x", "cl", "-cl-std=CL1.2", "-target", TRIPLES[vendor], f"{cpu}={target}",
        "-O3", "-nogpulib", "-w", f"-I{SOURCES}", "-Xclang", "-mlink-builtin-bitcode", "-Xclang",
        str(tools.library / LIBRARIES[vendor]), *(f"-D{x}" for x in variant.defines), "-S", "-o",
        str(assembly), str(SOURCES / variant.source),
    ])  # fmt: skip
    if vendor == "amd":
        return read_amd(assembly.read_text(encoding="utf-8"), variant.name)
    log = _run([tools.ptxas or "", "-v", f"-arch={target}", "-o", os.devnull, str(assembly)])
    return read_nvidia(log, variant.name)


def read_amd(assembly: str, name: str) -> Use:
    """What clang's assembly says of a kernel in its metadata."""
    metadata = assembly[assembly.index("amdhsa.kernels:") :]
    for part in re.split(r"\n  - (?=\.)", metadata):
        if re.search(rf"\.symbol: +'?{name}\.kd\b", part):
            numbers = {k: int(v) for k, v in re.findall(r"\.(\w+): +(\d+)\n", part)}
            return Use(
                numbers["vgpr_count"], numbers["private_segment_fixed_size"],
                numbers["group_segment_fixed_size"],
            )  # fmt: skip
    raise RuntimeError(f"no kernel {name} in the assembly")


def read_nvidia(log: str, name: str) -> Use:
    """What ``ptxas -v`` says of a kernel."""
    part = log.partition(f"Compiling entry function '{name}'")[2].partition("Compiling entry")[0]
    numbers = [
        re.search(pattern, part)
        for pattern in (r"Used (\d+) registers", r"(\d+) bytes stack frame", r"(\d+) bytes smem")
    ]
    if numbers[0] is None:
        raise RuntimeError(f"no kernel {name} in the log")
    return Use(*(int(found[1]) if found else 0 for found in numbers))


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


def results(
    wanted: Iterable[Variant], targets: Sequence[str], tools: Tools
) -> Iterator[tuple[str, Variant, Use | str]]:
    """(target, variant, what it takes, or why it does not compile)."""
    jobs = [(target, variant) for variant in wanted for target in targets]

    def compiled(job: tuple[str, Variant]) -> Use | str:
        try:
            return compile_for(*job, tools, Path(folder))
        except RuntimeError as error:
            return str(error)

    with tempfile.TemporaryDirectory() as folder, ThreadPoolExecutor(os.cpu_count()) as pool:
        for (target, variant), use in zip(jobs, pool.map(compiled, jobs), strict=True):
            yield target, variant, use


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--targets", default=",".join(TARGETS))
    parser.add_argument("--only", default="", metavar="TEXT", help="kernels whose file has it")
    parser.add_argument("--all", action="store_true", help="a line for each variant")
    args = parser.parse_args()
    tools = find_tools()
    if tools is None:
        print("clang with libclc is not there: nothing was compiled")
        return 0
    targets = [t for t in args.targets.split(",") if _vendor(t) == "amd" or tools.ptxas]
    wanted = [v for v in variants() if args.only in v.source]
    most: dict[tuple[str, str], Use] = {}
    failed = False
    for target, variant, use in results(wanted, targets, tools):
        if isinstance(use, str):
            print(target, variant.source, *variant.defines, use, sep=" ")
            failed = True
            continue
        failed |= variant.source in HOT and use.scratch > 0
        if args.all:
            print(target, use, variant.source, variant.name, *variant.defines)
        key = f"{variant.source} {variant.name}", target
        old = most.get(key, Use(0, 0, 0))
        most[key] = Use(*map(max, zip(vars(old).values(), vars(use).values(), strict=True)))
    print(f"{'kernel':36} {'target':8} {'registers':>9} {'scratch':>8} {'local':>7}")
    for (kernel, target), use in sorted(most.items()):
        print(f"{kernel:36} {target:8} {use.registers:9} {use.scratch:8} {use.local:7}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
