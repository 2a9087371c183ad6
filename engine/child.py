"""Child processes for work that a file or a client may have made endless.

Threads cannot be ended, and what one operation of the interpreter builds cannot be stopped: a
process can. Both sides of the pipe are here. The parent has a ``Pool``: messages go to the
children, one at a time to each; one that takes too long or too much memory is killed by the
operating system, and only who sent the message hears of it (``ChildError``). The module that a
child runs calls ``serve``.

Messages to a child are pickled, since the parent is trusted; answers are bytes, since a child is
not. Where the system has no ``resource`` (Windows), time is limited by the parent's clock only,
and memory is not.
"""

from __future__ import annotations

import contextlib
import math
import os
import pickle
import signal
import struct
import subprocess
import sys
import threading
import weakref
from collections.abc import Callable
from typing import IO, Any, Literal, NamedTuple

if sys.platform != "win32":
    import resource

_LENGTH = struct.Struct(">Q")
_OUT_OF_MEMORY = 77  # exit code of a child that had no memory left
CLOCK = 3  # a child may take so many times its seconds, where others use the processor, too
SETUP_CLOCK = 12  # the same of its setup: that begins with a process, and a start hangs on it
MAX_ANSWER = 64 << 20  # bytes
_PIPE = 1 << 20  # bytes; where it is small, a long message makes both sides take many turns
# Nothing else of the parent's environment is the child's business: it may hold keys.
_ENVIRONMENT = ("LANG", "LD_LIBRARY_PATH", "PATH", "SYSTEMROOT", "TEMP", "TZ")


class Limits(NamedTuple):
    """Of one message: seconds of the processor, and bytes beyond what the child starts with."""

    seconds: float
    memory: int


class ChildError(Exception):
    """A child has been ended while it worked on a message."""

    def __init__(self, why: Literal["time", "memory", "ended"], limits: Limits, code: int) -> None:
        super().__init__({
            "time": f"it took more than {limits.seconds:g} seconds",
            "memory": f"it took more than {limits.memory >> 20} MiB of memory",
            "ended": f"its process has ended with code {code}",
        }[why])  # fmt: skip
        self.why = why


class _Child:
    """A process; ``first_answer`` is what it makes of the setup."""

    def __init__(self, module: str, setup: bytes, limits: Limits) -> None:
        kept = {
            name: value
            for name, value in os.environ.items()
            if name in _ENVIRONMENT or name.startswith(("LC_", "PYTHON"))
        }
        self._limits = limits
        self._late = False
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", module, repr(limits.seconds), repr(limits.memory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pipesize=_PIPE,
            env=kept | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        self._close = weakref.finalize(self, _end, self.process)
        self._first: bytes | ChildError | None = None
        # In a thread: the child reads once it has started, which nobody needs to wait for.
        self._beginning = threading.Thread(target=self._set_up, args=(setup,), daemon=True)
        self._beginning.start()

    def _set_up(self, setup: bytes) -> None:
        try:
            self._first = self._exchange(setup, SETUP_CLOCK)
        except ChildError as error:
            self._first = error

    def first_answer(self) -> bytes:
        self._beginning.join()
        if isinstance(self._first, bytes):
            return self._first
        assert self._first is not None
        raise self._first

    def ask(self, message: bytes) -> bytes:
        self.first_answer()
        return self._exchange(message, CLOCK)

    def _exchange(self, message: bytes, clock: float) -> bytes:
        timer = threading.Timer(self._limits.seconds * clock, self._kill_late)
        timer.daemon = True
        timer.start()
        stdin, stdout = self.process.stdin, self.process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            _send(stdin, message)
            answer = _receive(stdout, MAX_ANSWER)
        except OSError:
            answer = None
        finally:
            timer.cancel()
        if answer is None:
            raise self._end()
        return answer

    def _kill_late(self) -> None:
        self._late = True
        self.process.kill()

    def _end(self) -> ChildError:
        """End the process, if it has not ended by itself, and say why that is so."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(1)  # its output has ended, so will it
        self.close()
        code = self.process.returncode
        if self._late or code == -getattr(signal, "SIGXCPU", 0):
            return ChildError("time", self._limits, code)
        no_memory = code in (_OUT_OF_MEMORY, -signal.SIGABRT)  # Rust aborts
        return ChildError("memory" if no_memory else "ended", self._limits, code)

    def close(self) -> None:
        self._close()


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(OSError):
                pipe.close()


class Pool:
    """Children that run ``module``, started as they are needed, ``most`` of them. Every one is
    given ``setup`` before anything else. Thread-safe."""

    def __init__(
        self, module: str, setup: object, *, most: int, limits: Limits, ahead: bool = True
    ) -> None:
        """``ahead``: the first child is started at once."""
        self._module, self._setup, self._limits = module, pickle.dumps(setup), limits
        self._turns = threading.Semaphore(most)
        self._busy: set[_Child] = set()
        self._idle = [self._start()] if ahead else []
        _POOLS.add(self)

    def first_answer(self) -> bytes:
        """What a child makes of the setup; ChildError if that ends it."""
        return self._with_child(_Child.first_answer)

    def ask(self, message: object) -> bytes:
        """The answer of a child that is free, waiting for one.

        ChildError if it takes too long or too much memory; RecursionError for a message that is
        nested too deeply.
        """
        data = pickle.dumps(message, pickle.HIGHEST_PROTOCOL)
        return self._with_child(lambda child: child.ask(data))

    def _with_child(self, use: Callable[[_Child], bytes]) -> bytes:
        with self._turns:
            child = self._take()
            self._busy.add(child)
            try:
                answer = use(child)
            except BaseException:
                child.close()  # it may be in the middle of an answer
                raise
            finally:
                self._busy.discard(child)
            self._idle.append(child)
            return answer

    def _take(self) -> _Child:
        while (child := self._pop()) is not None:
            if child.process.poll() is None:
                return child
            child.close()  # somebody has ended it meanwhile
        return self._start()

    def _pop(self) -> _Child | None:
        """One that is idle, which no other thread gets."""
        try:
            return self._idle.pop()
        except IndexError:
            return None

    def _start(self) -> _Child:
        return _Child(self._module, self._setup, self._limits)

    def close(self) -> None:
        """End all children. A later message starts one anew."""
        for child in self._busy.copy():
            child.process.kill()  # who waits for it sees that
        while (idle := self._pop()) is not None:
            idle.close()


_POOLS: weakref.WeakSet[Pool] = weakref.WeakSet()


def end_all() -> None:
    """End all children of this process, which must not wait for them when it ends itself."""
    for pool in list(_POOLS):
        pool.close()


def serve(set_up: Callable[[Any], tuple[Callable[[Any], bytes], bytes]]) -> None:
    """In the child: answer messages until the parent is gone.

    ``set_up`` is given the setup; it returns what answers the messages, and the answer to the
    setup itself.
    """
    seconds, memory = float(sys.argv[1]), int(sys.argv[2])
    stdin, stdout = sys.stdin.buffer, sys.stdout.buffer
    sys.stdout = sys.stderr  # whoever prints must not disturb the answers
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal sends it to the children, too
    _limit_memory(memory)
    handle: Callable[[Any], bytes] | None = None
    while (message := _receive(stdin)) is not None:
        _limit_time(seconds)
        try:
            if handle is None:
                handle, answer = set_up(pickle.loads(message))
            else:
                answer = handle(pickle.loads(message))
            if len(answer) > MAX_ANSWER:
                raise MemoryError
            _send(stdout, answer)
        except MemoryError:
            os._exit(_OUT_OF_MEMORY)


def _limit_memory(n_bytes: int) -> None:
    if sys.platform != "win32":
        try:
            with open("/proc/self/statm", encoding="ascii") as file:
                now = int(file.read().split()[0]) * resource.getpagesize()
        except OSError:  # no Linux
            now = n_bytes
        resource.setrlimit(resource.RLIMIT_AS, (now + n_bytes, now + n_bytes))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _limit_time(seconds: float) -> None:
    """From now on; the system's own limit, so that it holds for a child without a parent, too."""
    if sys.platform != "win32":
        usage = resource.getrusage(resource.RUSAGE_SELF)
        _, most = resource.getrlimit(resource.RLIMIT_CPU)
        until = math.ceil(usage.ru_utime + usage.ru_stime + seconds)
        resource.setrlimit(resource.RLIMIT_CPU, (until, most))


def _send(pipe: IO[bytes], message: bytes) -> None:
    pipe.write(_LENGTH.pack(len(message)))
    pipe.write(message)
    pipe.flush()


def _receive(pipe: IO[bytes], most: int | None = None) -> bytes | None:
    """The next message; None at the end, or if it is longer than it may be."""
    head = pipe.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (n_bytes,) = _LENGTH.unpack(head)
    if most is not None and n_bytes > most:
        return None
    message = pipe.read(n_bytes)
    return message if len(message) == n_bytes else None
