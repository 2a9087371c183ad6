"""Child processes that compile: asking one, and keeping those that somebody will need soon.

A child (compile_worker.py) takes half a second of processor time to come up. On a first start
children are begun before the server imports anything, and told their device when it is known;
those that have tried out instructions (features.py) compile afterwards.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import gguf_serve
from gguf_serve.kernels.opencl.drivers import only_driver

if TYPE_CHECKING:
    from gguf_serve.kernels.opencl.compiling.probe import Kind
    from gguf_serve.kernels.opencl.platforms import DeviceInfo

N_WORKERS = 2  # that compile what somebody waits for
SPARE_SECONDS = 30.0  # that a child which has nothing to do waits for somebody to take it


class NoWorkerError(Exception):
    """No child process can be started here."""


class WorkerEndedError(Exception):
    """A child has ended over what it was asked for; the message says how. ``late``: it had no
    answer in time, and was ended."""

    def __init__(self, message: str, *, late: bool) -> None:
        super().__init__(message)
        self.late = late


class Worker:
    """A child process and the pipe to it. What it is asked for comes back in that order."""

    def __init__(self, *, background: bool = False) -> None:
        """``background``: it runs when no other process wants the processor."""
        if not sys.executable:
            raise NoWorkerError("this Python does not know its own program")
        module = "gguf_serve.kernels.opencl.compiling.compile_worker"
        # The parent's folders of modules, so that "site" need not look for them again.
        command = [sys.executable, "-S", "-m", module, *(["background"] * background)]
        root = str(Path(gguf_serve.__file__).resolve().parents[1])
        path = os.pathsep.join(filter(None, [root, *sys.path]))
        own = {
            "PYTHONPATH": path,
            "OPENBLAS_NUM_THREADS": "1",  # NumPy's BLAS would start its threads
            "PYOPENCL_NO_CACHE": "1",  # the parent keeps what is compiled
        }
        try:
            self._process = subprocess.Popen(
                command, env={**os.environ, **own},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
            )  # fmt: skip
        except OSError as error:
            raise NoWorkerError(str(error)) from error
        self._ready = False
        self.device: DeviceInfo | None = None

    def choose(self, info: DeviceInfo) -> None:
        """Tell it its device, before anything else."""
        only = only_driver(info.platform, info.kind)
        with contextlib.suppress(OSError):  # it has ended, as who asks it for something will hear
            self._send({"platform": info.platform, "device": info.name, "environment": only})
        self.device = info

    def compile(self, source: str, options: Sequence[str], seconds: float) -> bytes:
        """The binary of a program. ValueError with the compiler's log; WorkerEndedError, late
        after so many seconds; NoWorkerError if it never came up."""
        answer, binary = self._ask({"source": source, "options": list(options)}, seconds)
        if "error" in answer:
            raise ValueError(answer["error"])
        return binary

    def probe(self, form: str, seconds: float, kind: Kind) -> bool:
        """Whether a form of products works (probe.py). Errors as of ``compile``."""
        answer, _ = self._ask({"probe": form, "kind": kind}, seconds)
        return bool(answer.get("works"))

    def close(self) -> int:
        """End the process; its exit status."""
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()
        try:
            return self._process.wait(1)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()

    def kill(self) -> None:
        self._process.kill()

    @property
    def alive(self) -> bool:
        return self._process.poll() is None

    @property
    def _stdout(self) -> Any:
        assert self._process.stdout is not None
        return self._process.stdout

    def _ask(self, wanted: Mapping[str, Any], seconds: float) -> tuple[dict[str, Any], bytes]:
        """The child's answer, and what bytes follow it."""
        late = threading.Event()

        def end() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            self._send(wanted)
            if not self._ready:
                self._read()
                self._ready = True
            answer = self._read()
            data: bytes = self._stdout.read(answer.get("size", 0))
            if len(data) < answer.get("size", 0):
                raise EOFError
            return answer, data
        except (OSError, EOFError, ValueError) as error:
            status = self.close()
            if not self._ready and not late.is_set():
                raise NoWorkerError(f"it ended with status {status}") from error
            how = f"signal {-status}" if status < 0 else f"status {status}"
            raise WorkerEndedError(how, late=late.is_set()) from error
        finally:
            timer.cancel()

    def _send(self, message: Mapping[str, Any]) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(message).encode() + b"\n")
        self._process.stdin.flush()

    def _read(self) -> dict[str, Any]:
        line = self._stdout.readline()
        if not line.endswith(b"\n"):
            raise EOFError
        answer: dict[str, Any] = json.loads(line)
        return answer


class _Spare:
    """Children that are not in use. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._workers: list[Worker] = []

    def put(self, worker: Worker) -> None:
        with self._lock:
            self._workers.append(worker)
        timer = threading.Timer(SPARE_SECONDS, self._end, [worker])
        timer.daemon = True
        timer.start()

    def take(self, info: DeviceInfo) -> Worker | None:
        """One that has this device or none yet."""
        with self._lock:
            for worker in list(self._workers):
                if not worker.alive:
                    self._workers.remove(worker)
                    worker.close()
                elif worker.device in (None, info):
                    self._workers.remove(worker)
                    return worker
        return None

    def end(self) -> None:
        with self._lock:
            workers, self._workers = self._workers, []
        for worker in workers:
            worker.close()

    def _end(self, worker: Worker) -> None:
        with self._lock:
            if worker not in self._workers:
                return
            self._workers.remove(worker)
        worker.close()


_spare = _Spare()


def begin_workers(n: int) -> None:
    """Start children that will be needed, whatever their device."""
    with contextlib.suppress(NoWorkerError):  # who needs one hears of it
        for _ in range(n):
            _spare.put(Worker())


def take_worker(info: DeviceInfo, *, background: bool = False) -> Worker:
    """A child for a device: one that is spare, unless it is to run in the background, or a new
    one. NoWorkerError."""
    worker = None if background else _spare.take(info)
    worker = worker or Worker(background=background)
    if worker.device is None:
        worker.choose(info)
    return worker


def keep_worker(worker: Worker) -> None:
    """Give a child back, for who needs one next."""
    _spare.put(worker)


def end_spare_workers() -> None:
    """Nobody will need one soon."""
    _spare.end()
