"""Compiles every program on this machine's CPU drivers, for processors that need not be there.

    python scripts/check_compile.py [--processors avx2,vnni] [--only matmul] [--model FILE ...]
                                    [--every N [--first I]] [--limit 2]
                                    [--state FILE] [--minutes M]

Which processors: PROCESSORS; Intel's driver generates code for any of them, PoCL for the one that
it runs on (native). Which programs: the products of every tensor type with every form of
activations and everything that is done with their sums, attention (scripts/variants.py), in both
kernel families, and with --model all that the steps of these models need. Prints the ten that took
longest, in seconds of processor time: that does not depend on what else a machine does. Ends with
1 where one takes more than the limit or does not compile; a compiler that takes MOST_SECONDS of
processor time is ended. --every 100 takes a hundredth of them, for a quick look.

All of them are hours of processor time. --state keeps what is found in a file, from which the
next run goes on, and --minutes ends a run early; --every 2 --first 0 and --first 1 are one half
each, for two machines. Programs whose text is the same after the preprocessor are compiled once
(compiled_before.py).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from compiled_before import Compiled, Outcome, program_hash, text_hash
from variants import gpu, launcher_specs, model_specs, processor

from gguf_serve.engine.recording.step import Mode
from gguf_serve.kernels.opencl.compiling.program_cache import device_hash_of
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.platforms import list_devices
from gguf_serve.kernels.opencl.program import Spec

LIMIT = 2.0  # seconds of processor time
MOST_SECONDS = 20  # of processor time, for one program
HANG_SECONDS = 1200.0  # on the clock, of which a busy machine gives a compiler little
NO_CACHES = {"PYOPENCL_NO_CACHE": "1", "POCL_KERNEL_CACHE": "0"}
TARGET = "CL_CONFIG_CPU_TARGET_ARCH"
MODES = (Mode(1, "single", 1), Mode(1, "split", 1), Mode(8, "single", 8), Mode(32, "tiles", 8))


@dataclass(frozen=True, slots=True)
class Processor:
    """What Intel's driver calls an architecture, None for the one that is there, and what
    kernels/opencl/compiling/features.py finds on it."""

    target: str | None
    forms: tuple[str, ...]


PROCESSORS = {
    "native": Processor(None, ()),
    "avx2": Processor("core-avx2", ("MADD_BYTES_256",)),
    "avx512": Processor("skx", ("MADD_BYTES_256",)),
    "vnni": Processor("icelake-server", ("DOT_PAIRS_512", "DOT_BYTES_512")),
    "vnni-256": Processor("sapphirerapids", ("DOT_PAIRS_256", "DOT_BYTES_256")),
}


@dataclass(frozen=True, slots=True)
class Job:
    """A program to compile. ``driver``: a part of its platform's name."""

    driver: str
    processor: str
    spec: Spec

    def __str__(self) -> str:
        defines = " ".join(self.spec.defines)
        return f"{self.driver} {self.processor} {self.spec.source} {defines}"


@dataclass(frozen=True, slots=True)
class Result:
    """``seconds`` of processor time, or why it failed. ``is_new``: it was compiled just now."""

    job: Job
    seconds: float
    error: str = ""
    is_new: bool = True


class Compiler:
    """A process that compiles for one driver and processor, anew after one that hung."""

    def __init__(self, driver: str, processor: str) -> None:
        self._driver, self._target = driver, PROCESSORS[processor].target
        self._process: subprocess.Popen[str] | None = None

    def compile(self, spec: Spec) -> Outcome:
        process = self._process or self._start()
        self._process = process
        timer = threading.Timer(HANG_SECONDS, process.kill)
        timer.start()
        try:
            _writes(process).write(json.dumps([spec.source, *spec.defines]) + "\n")
            _writes(process).flush()
            line = _reads(process).readline()
        except OSError:
            line = ""
        finally:
            timer.cancel()
        if line:
            return Outcome(*json.loads(line))
        return Outcome(MOST_SECONDS, f"the compiler ended with {self.close()}")

    def close(self) -> int | None:
        """The process' exit status, None if there is none."""
        if self._process is None:
            return None
        with self._process as process, contextlib.suppress(BrokenPipeError):
            _writes(process).close()
        self._process = None
        return process.returncode

    def _start(self) -> subprocess.Popen[str]:
        target = {} if self._target is None else {TARGET: self._target}
        return subprocess.Popen(
            [sys.executable, __file__, "--compile-for", self._driver],
            env={**os.environ, **target, **NO_CACHES}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip


def _writes(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdin is not None
    return process.stdin


def _reads(process: subprocess.Popen[str]) -> IO[str]:
    assert process.stdout is not None
    return process.stdout


def jobs(names: Iterable[str], models: Sequence[Path]) -> list[Job]:
    """Everything that the drivers which are there should compile; ``names`` of PROCESSORS."""
    drivers = dict.fromkeys(info.platform for info in list_devices() if info.kind == "cpu")
    found = []
    for driver in drivers:
        for name in names:
            kind = PROCESSORS[name]
            if kind.target is not None and "Intel" not in driver:
                continue
            forms = kind.forms
            rounding = processor(forms, byte_codes="all" if forms else "none")
            for device in (rounding, processor(forms), gpu()):
                if device.is_simd or name == "native":
                    found += [Job(driver, name, spec) for spec in _specs(device, models)]
    return list(dict.fromkeys(found))


def _specs(device: Device, models: Sequence[Path]) -> Iterator[Spec]:
    yield from launcher_specs(device)
    for path in models:
        yield from model_specs(path, device, MODES)


def compile_all(
    wanted: Sequence[Job], n_processes: int, compiled: Compiled, until: float = math.inf
) -> Iterator[Result]:
    """In as many processes, each of which keeps the compilers that it has needed. What has been
    compiled is not again; what is not begun ``until`` a time of the monotonic clock is left out."""
    local = threading.local()
    compilers: list[Compiler] = []
    hashes = {info.platform: device_hash_of(info) for info in list_devices()}

    def run(job: Job) -> Result | None:
        place = f"{job.driver} {hashes[job.driver]} {job.processor}"
        program = program_hash(place, job.spec)
        outcome = compiled.find(program)
        if outcome is not None:
            return Result(job, *outcome, is_new=False)
        if time.monotonic() >= until:
            return None
        text = text_hash(place, job.spec)
        outcome = None if text is None else compiled.find(text)
        is_new = outcome is None
        outcome = outcome or compiler_for(job).compile(job.spec)
        compiled.add([program, *([text] if text else [])], outcome)
        return Result(job, *outcome, is_new=is_new)

    def compiler_for(job: Job) -> Compiler:
        kept: dict[tuple[str, str], Compiler] = local.__dict__.setdefault("compilers", {})
        key = job.driver, job.processor
        if key not in kept:
            kept[key] = Compiler(*key)
            compilers.append(kept[key])
        return kept[key]

    try:
        with ThreadPoolExecutor(n_processes) as pool:
            yield from filter(None, pool.map(run, wanted))
    finally:
        for compiler in compilers:
            compiler.close()


def serve(driver: str) -> None:
    """Compile what standard input asks for, a JSON list of a source and its defines a line."""
    import pyopencl as cl

    from gguf_serve.kernels.opencl.platforms import platform_devices
    from gguf_serve.kernels.opencl.sources import SOURCES

    info = next(info for info in list_devices() if driver in info.platform)
    context = cl.Context([platform_devices()[info.index]])
    build(context, "kernel void nothing() {}", [])  # loads the compiler
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    for line in sys.stdin:
        source, *defines = json.loads(line)
        began, error = time.process_time(), ""
        resource.setrlimit(resource.RLIMIT_CPU, (int(began) + MOST_SECONDS, hard))  # it is a signal
        try:
            build(context, (SOURCES / source).read_text(encoding="utf-8"), defines)
        except cl.Error as failure:
            error = str(failure)[-2000:]
        print(json.dumps([time.process_time() - began, error]), flush=True)


def build(context: Any, text: str, defines: Sequence[str]) -> None:
    """To the machine's code, which PoCL makes when it is asked for the binary."""
    import pyopencl as cl

    from gguf_serve.kernels.opencl.sources import OPTIONS

    options = [*OPTIONS, *(f"-D{define}" for define in defines)]
    program = cl.Program(context, text).build(options, cache_dir=False)  # type: ignore[arg-type]
    assert program.get_info(cl.program_info.BINARIES)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--processors", default=",".join(PROCESSORS), metavar="NAMES")
    parser.add_argument("--only", default="", metavar="TEXT", help="files whose name has it")
    parser.add_argument("--model", type=Path, action="append", default=[], metavar="FILE")
    parser.add_argument("--limit", type=float, default=LIMIT, metavar="SECONDS")
    parser.add_argument("--every", type=int, default=1, metavar="N")
    parser.add_argument("--first", type=int, default=0, metavar="I", help="of those N")
    parser.add_argument("--state", type=Path, metavar="FILE", help="what is known, and becomes so")
    parser.add_argument("--minutes", type=float, default=math.inf, metavar="M")
    parser.add_argument("--compile-for", metavar="DRIVER", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.compile_for is not None:
        serve(args.compile_for)
        return 0
    wanted = jobs(args.processors.split(","), args.model)
    wanted = [job for job in wanted if args.only in job.spec.source]
    wanted = wanted[args.first :: args.every]
    until = time.monotonic() + args.minutes * 60
    found = compile_all(wanted, os.cpu_count() or 1, Compiled(args.state), until)
    results = sorted(found, key=lambda r: -r.seconds)
    new = [result.seconds for result in results if result.is_new]
    print(
        f"{len(results)} of {len(wanted)} programs, {len(new)} of them compiled now in "
        f"{sum(new):.0f} s of processor time; the slowest:"
    )
    for result in results[:10]:
        print(f"{result.seconds:7.2f} s  {result.job}")
    failed = [result for result in results if result.error]
    for result in failed:
        print(f"does not compile: {result.job}: {result.error}")
    return int(bool(failed) or any(result.seconds > args.limit for result in results))


if __name__ == "__main__":
    sys.exit(main())
