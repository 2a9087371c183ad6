"""Programs compiled in children: once, whoever asks, and what becomes of a child that dies."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

import gguf_serve
from gguf_serve.kernels.opencl.compiling import compiler
from gguf_serve.kernels.opencl.compiling.compiler import BACKGROUND, BuildError, Compiler, Job
from gguf_serve.kernels.opencl.compiling.program_cache import ProgramCache
from gguf_serve.kernels.opencl.compiling.worker import NoWorkerError
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.platforms import DeviceInfo
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.quantization.quants import by_name

INFO = DeviceInfo(0, "CPU", "platform", "driver", "cpu", 1 << 30, 2)
SECONDS = 60


class FakeWorker:
    """Notes what it compiles; waits for ``gate`` before what is called "a"."""

    compiled: list[str]
    gate: threading.Event

    def __init__(self, info: DeviceInfo, *, background: bool) -> None:
        self.alive = True

    def compile(self, source: str, options: Sequence[str], seconds: float) -> bytes:
        if source == "a":
            self.gate.wait(SECONDS)
        self.compiled.append(source)
        return source.encode()

    def close(self) -> None:
        self.alive = False

    kill = close


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Iterator[type[FakeWorker]]:
    FakeWorker.compiled, FakeWorker.gate = [], threading.Event()
    monkeypatch.setattr(compiler, "take_worker", FakeWorker)
    monkeypatch.setattr(compiler, "N_THREADS", (1, 1))
    monkeypatch.setattr(compiler, "IDLE_SECONDS", 0.0)
    before = set(threading.enumerate())
    yield FakeWorker
    FakeWorker.gate.set()
    # Else a thread has its worker for longer than this file's tests, and then keeps it for others.
    for thread in set(threading.enumerate()) - before:
        thread.join(SECONDS)


def job(name: str) -> Job:
    return Job(f"key of {name}", name, name, [])


def test_two_at_once_compile_once(worker: type[FakeWorker], tmp_path: Path) -> None:
    """As two servers that start together: each waits for what the other one has begun."""
    both = [Compiler(INFO, ProgramCache(tmp_path)) for _ in range(2)]
    futures = [c.submit([job("a"), job("b"), job("a")]) for c in both]
    worker.gate.set()
    assert [[f.result(SECONDS) for f in some] for some in futures] == [[b"a", b"b", b"a"]] * 2
    assert sorted(worker.compiled) == ["a", "b"]
    assert sum(c.n_compiled for c in both) == 2


def test_what_is_waited_for_comes_first(worker: type[FakeWorker], tmp_path: Path) -> None:
    one = Compiler(INFO, ProgramCache(tmp_path))
    later = one.submit([job("a"), job("b"), job("c")], BACKGROUND)
    (now,) = one.submit([job("c")])
    assert now is later[2]
    assert now.result(SECONDS) == b"c"  # while "a" is compiled in the background
    assert worker.compiled == ["c"]
    worker.gate.set()
    assert [future.result(SECONDS) for future in later] == [b"a", b"b", b"c"]


def test_stopping_fails_what_waits(worker: type[FakeWorker], tmp_path: Path) -> None:
    one = Compiler(INFO, ProgramCache(tmp_path))
    futures = one.submit([job("a"), job("b")])
    while len(one._queues[0]) > 1:  # until "a" has begun
        time.sleep(0.01)
    one.stop()
    with pytest.raises(BuildError, match="b: compiling has been stopped"):
        futures[1].result(SECONDS)


def child(folder: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> Compiler:
    """A compiler whose children are this shell script."""
    script = folder / "python"
    script.write_text(f"#!/bin/sh\n{text}\n")
    script.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(script))
    return Compiler(INFO, ProgramCache(folder / "cache"))


def test_a_compiler_that_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "echo '{\"ready\": true}'; read device; read job; kill -SEGV $$"
    one = child(tmp_path, monkeypatch, text)
    futures = one.submit([job("a"), job("b")])
    for name, future in zip("ab", futures, strict=True):
        with pytest.raises(BuildError, match=f"{name}: the compiler has ended with signal 11"):
            future.result(SECONDS)


def test_a_child_that_does_not_come_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = child(tmp_path, monkeypatch, "exit 3")
    with pytest.raises(NoWorkerError, match="status 3"):
        one.submit([job("a")])[0].result(SECONDS)


def test_a_compiler_that_takes_forever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compiler, "COMPILE_SECONDS", 0.2)
    one = child(tmp_path, monkeypatch, "echo '{\"ready\": true}'; exec sleep 100")
    with pytest.raises(BuildError, match="signal 9"):
        one.submit([job("a")])[0].result(SECONDS)


# With a device

SOURCE, DEFINES = "matrix/embed.cl", by_name("F32").defines


@pytest.fixture
def compiling(device: Device) -> Device:
    if Programs(device).are_kept_by_driver:
        pytest.skip("this driver compiles when a kernel is launched, and keeps that itself")
    return device


def build(device: Device, cache: ProgramCache) -> Programs:
    programs = Programs(device, cache)
    assert programs.kernel(SOURCE, "embed", DEFINES).num_args > 0
    programs.end_compilers()
    return programs


def test_the_second_start_compiles_nothing(
    compiling: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = ProgramCache(tmp_path)
    assert (build(compiling, cache).n_compiled, build(compiling, cache).n_cached) == (1, 1)
    (entry,) = tmp_path.glob("*.bin")
    entry.write_bytes(entry.read_bytes()[:-1])
    assert build(compiling, cache).n_compiled == 1
    monkeypatch.setattr(
        "gguf_serve.kernels.opencl.compiling.program_cache.cpu_identity",
        lambda: {"model": "another"},
    )
    assert build(compiling, cache).n_compiled == (compiling.info.kind == "cpu")


def test_a_binary_that_the_driver_refuses(compiling: Device, tmp_path: Path) -> None:
    cache = ProgramCache(tmp_path)
    programs = Programs(compiling, cache)
    key = programs._key(programs.spec(SOURCE, DEFINES))
    cache.store(key, b"not a program")
    assert build(compiling, cache).n_compiled == 1
    assert cache.load(key) != b"not a program"


def test_without_children(
    compiling: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", "")
    programs = build(compiling, ProgramCache(tmp_path))
    assert programs.n_compiled == 1


def test_a_user_whose_cache_cannot_be_written(compiling: Device, tmp_path: Path) -> None:
    """Neither ours nor those of pyopencl end the process."""
    (tmp_path / "file").touch()
    program = (
        "import sys, logging; logging.basicConfig()\n"
        "from gguf_serve.kernels.opencl.device import open_device\n"
        "from gguf_serve.kernels.opencl.program import Programs\n"
        "from gguf_serve.kernels.quantization.quants import by_name\n"
        "programs = Programs(open_device(sys.argv[1], family=sys.argv[2]))\n"
        "for t in ('F32', 'F16'): programs.kernel('matrix/embed.cl', 'embed', by_name(t).defines)\n"
        "print(programs.n_compiled)\n"
    )
    root = str(Path(gguf_serve.__file__).parents[1])
    environment = {**os.environ, "PYTHONPATH": root, "XDG_CACHE_HOME": str(tmp_path / "file")}
    result = subprocess.run(
        [sys.executable, "-c", program, compiling.info.platform, compiling.family],
        env=environment, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stdout) == (0, "2\n"), result.stderr
    assert result.stderr.count("cannot be kept") == 1


def test_two_processes_share_the_work(compiling: Device, tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path\n"
        "from gguf_serve.kernels.opencl.device import open_device\n"
        "from gguf_serve.kernels.opencl.program import Programs\n"
        "from gguf_serve.kernels.quantization.quants import by_name\n"
        "from gguf_serve.kernels.opencl.compiling.program_cache import ProgramCache\n"
        "device = open_device(sys.argv[1], family=sys.argv[2])\n"
        "programs = Programs(device, ProgramCache(Path(sys.argv[3])))\n"
        "specs = [programs.spec('matrix/embed.cl', by_name(t).defines) for t in ('F16', 'F32')]\n"
        "programs.request(specs)\n"
        "for t in ('F32', 'F16'): programs.build('matrix/embed.cl', by_name(t).defines)\n"
        "print(programs.n_compiled)\n"
    )
    root = str(Path(gguf_serve.__file__).parents[1])
    command = [sys.executable, "-c", program, str(compiling.info.index), compiling.family]
    both = [
        subprocess.Popen(
            [*command, str(tmp_path)], env={**os.environ, "PYTHONPATH": root},
            stdout=subprocess.PIPE, text=True,
        )
        for _ in range(2)
    ]  # fmt: skip
    assert sum(int(process.communicate(timeout=120)[0]) for process in both) == 2
