"""OpenCL programs: built once per source file and set of defines, then kept.

What has been compiled before comes from the disk (program_cache.py), the rest from child
processes (compiler.py); here a binary becomes a program, which takes some milliseconds. Drivers
that compile a kernel when it is first launched, and keep that themselves, get the source.
"""

from __future__ import annotations

import functools
import logging
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, NamedTuple

import pyopencl as cl
from pyopencl import invoker

from gguf_serve.kernels.opencl.compiling.compile_worker import compile_program
from gguf_serve.kernels.opencl.compiling.compiler import (
    BACKGROUND,
    FOREGROUND,
    BuildError,
    Compiler,
    Job,
)
from gguf_serve.kernels.opencl.compiling.program_cache import (
    ProgramCache,
    default_folder,
    device_hash_of,
    program_key,
)
from gguf_serve.kernels.opencl.compiling.worker import NoWorkerError
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.signature import Arguments, signature
from gguf_serve.kernels.opencl.sources import OPTIONS, SOURCES, effective, is_scalar

__all__ = ["SOURCES", "BuildError", "Programs", "Spec"]

log = logging.getLogger(__name__)
# pyopencl writes and compiles Python for every kernel object, a third of a millisecond; it is the
# same for all of one name and number of arguments.
_GENERATE = "_generate_enqueue_and_set_args_module"
if hasattr(invoker, _GENERATE):
    setattr(invoker, _GENERATE, functools.cache(getattr(invoker, _GENERATE)))
# PoCL's binaries have kernels for work-groups of any size, which it does not vectorize.
KEEP_THEIR_OWN = ("Portable Computing Language", "PoCL")


def _drop(text: str) -> None:
    """Compilers' remarks are not for users.

    pyopencl makes warnings of them, whose filters are the whole process's: another thread that
    changed them while an engine's built once made a remark the end of that engine.
    """


cl.compiler_output = _drop


class Spec(NamedTuple):
    """A program: its .cl file and those of its defines and the device's that can change it."""

    source: str
    defines: tuple[str, ...]

    def __str__(self) -> str:
        return f"{self.source} with {' '.join(self.defines)}"


class _NoKernel:
    """What a meta device has for a kernel."""

    def set_args(self, *args: object) -> None:
        pass


class Programs:
    """The built programs of one device. Thread-safe: loading builds several at a time.

    Those of a meta device are not built: what is recorded on it asks for them (``take_wanted``).
    """

    def __init__(self, device: Device, cache: ProgramCache | None = None) -> None:
        self._device = device
        self._built: dict[Spec, cl.Program] = {}
        self._locks: dict[Spec, threading.Lock] = {}
        self._lock = threading.Lock()
        self._cache = cache or ProgramCache(default_folder())
        self._compiler = Compiler(device.info, self._cache)
        self._device_hash = ""
        self._binaries: dict[Spec, Future[bytes]] = {}
        self._wanted: dict[Spec, None] = {}
        self._n_compiled_here = 0
        self.n_cached = 0  # programs that were on the disk

    def kernel(self, source: str, name: str, defines: Sequence[str] = ()) -> Any:
        """A new kernel object ``name`` of ``source`` (a .cl file), its arguments unset."""
        if self._device.is_meta:
            self._wanted[self.spec(source, defines)] = None
            return _NoKernel()
        return cl.Kernel(self.build(source, defines), name)

    def bound(
        self, source: str, name: str, arguments: Arguments, defines: Sequence[str] = ()
    ) -> Any:
        """A new kernel object with its arguments set, which are given by name (signature.py)."""
        defines, values = signature(source, name).bind(arguments, defines)
        kernel = self.kernel(source, name, defines)
        kernel.set_args(*values)
        return kernel

    def spec(self, source: str, defines: Sequence[str] = ()) -> Spec:
        own = () if is_scalar(source) else self._device.defines
        return Spec(source, effective(source, (*defines, *own)))

    def take_wanted(self) -> list[Spec]:
        """What has been asked for on a meta device since the last call, in its order."""
        wanted, self._wanted = list(self._wanted), {}
        return wanted

    def build(self, source: str, defines: Sequence[str] = ()) -> cl.Program:
        """Raises BuildError."""
        spec = self.spec(source, defines)
        with self._lock:
            lock = self._locks.setdefault(spec, threading.Lock())
        with lock:
            if spec not in self._built:
                self._built[spec] = self._build(spec)
            return self._built[spec]

    def request(self, specs: Sequence[Spec], *, background: bool = False) -> list[Future[bytes]]:
        """Begin to compile what is not on the disk, in this order; ``build`` waits for it. The
        binaries that are still to come."""
        if self.are_kept_by_driver:
            return []
        missing = [spec for spec in specs if not self.load([spec])]
        self._submit(missing, BACKGROUND if background else FOREGROUND)
        with self._lock:
            found = [self._binaries[spec] for spec in specs if spec in self._binaries]
        return [binary for binary in found if not binary.done()]

    def load(self, specs: Sequence[Spec]) -> bool:
        """Take from the disk what nobody has asked for yet; whether it, or what was asked for,
        is all of these."""
        return all(self._is_known(spec) or self._from_disk(spec) for spec in specs)

    def has(self, specs: Sequence[Spec]) -> bool:
        """Whether these can be built at once."""
        with self._lock:
            waiting = [spec for spec in specs if spec not in self._built]
            binaries = [self._binaries.get(spec) for spec in waiting]
        return all(b is not None and b.done() and b.exception() is None for b in binaries)

    @property
    def n_compiled(self) -> int:
        """How many were not on the disk."""
        return self._compiler.n_compiled + self._n_compiled_here

    @property
    def unwritable(self) -> str | None:
        """The folder that could not keep a program; None: there was none that could not."""
        return self._cache.unwritable

    def end_compilers(self) -> None:
        """Nothing more is wanted soon: processes that compile end when they are done."""
        self._compiler.end_workers()

    def stop(self) -> None:
        """End them now; whoever waits for a program gets a BuildError."""
        self._compiler.stop()

    @property
    def are_kept_by_driver(self) -> bool:
        return self._device.info.platform.startswith(KEEP_THEIR_OWN)

    def _is_known(self, spec: Spec) -> bool:
        with self._lock:
            return spec in self._built or spec in self._binaries

    def _build(self, spec: Spec) -> cl.Program:
        if self.are_kept_by_driver:
            return self._compile(spec)
        if not self._is_known(spec):
            self._from_disk(spec)
        with self._lock:
            binary = self._binaries.get(spec)
        if binary is None or not binary.done():  # then it comes before what nobody waits for
            (binary,) = self._submit([spec], FOREGROUND)
        try:
            return self._load(spec, binary.result())
        except NoWorkerError as error:
            log.warning("no process can be started to compile in: %s", error)
            return self._compile(spec)
        finally:
            with self._lock:
                self._binaries.pop(spec, None)

    def _from_disk(self, spec: Spec) -> bool:
        binary = self._cache.load(self._key(spec))
        if binary is None:
            return False
        future: Future[bytes] = Future()
        future.set_result(binary)
        with self._lock:
            self._binaries[spec] = future
            self.n_cached += 1
        return True

    def _submit(self, specs: Sequence[Spec], priority: int) -> list[Future[bytes]]:
        jobs = [
            Job(self._key(spec), str(spec), self._text(spec), self._options(spec)) for spec in specs
        ]
        futures = self._compiler.submit(jobs, priority)
        with self._lock:
            self._binaries |= dict(zip(specs, futures, strict=True))
        return futures

    def _load(self, spec: Spec, binary: bytes) -> cl.Program:
        """A program of its binary, or of its source if the driver does not take that."""
        try:
            program = cl.Program(self._device.context, self._device.context.devices, [binary])
            built: cl.Program = program.build(options=self._options(spec))
            return built
        except cl.Error:
            self._cache.discard(self._key(spec))
        return self._compile(spec)

    def _compile(self, spec: Spec) -> cl.Program:
        """In this process."""
        with self._lock:
            self._n_compiled_here += 1
        try:
            built: cl.Program = compile_program(
                self._device.context, self._text(spec), self._options(spec)
            )
            return built
        except cl.RuntimeError as error:
            raise BuildError(f"{spec}: {error}", self._device.info, spec.defines) from error

    def _key(self, spec: Spec) -> str:
        if not self._device_hash:
            self._device_hash = device_hash_of(self._device.info)
        return program_key(spec.source, spec.defines, self._device.info, self._device_hash)

    def _text(self, spec: Spec) -> str:
        return (SOURCES / spec.source).read_text(encoding="utf-8")

    def _options(self, spec: Spec) -> list[str]:
        return [*OPTIONS, *(f"-D{define}" for define in spec.defines)]
