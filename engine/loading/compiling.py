"""A model's programs: those of the first request at once, the others when there is time."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import Future
from pathlib import Path

from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.loading.rehearsal import Rehearsal
from gguf_serve.engine.recording.step import Mode, as_prompt, first_modes, later_modes
from gguf_serve.kernels.opencl.program import BuildError, Programs, Spec
from gguf_serve.kernels.quantization.quants import by_name
from gguf_serve.kernels.quantization.weights import pack_program

log = logging.getLogger(__name__)


class Compiling:
    """What the modes of a model need, and how far that is. Thread-safe."""

    def __init__(
        self,
        rehearsal: Rehearsal,
        placed: Sequence[Programs],
        packed: Sequence[Iterable[str]],
    ) -> None:
        """``placed``: the programs of each device; ``packed``: the tensor types of its weights."""
        self._rehearsal, self._placed = rehearsal, placed
        self._packing = [
            [programs.spec(*pack_program(by_name(name))) for name in sorted(types)]
            for programs, types in zip(placed, packed, strict=True)
        ]
        self._waiting: list[Future[bytes]] = []
        self.n_wanted = 0
        self._began = self._ended = 0.0
        self._thread: threading.Thread | None = None
        steps = {
            "generates": rehearsal.generates, "encodes": rehearsal.encodes,
            "states": rehearsal.gives_states,
        }  # fmt: skip
        self.first, self.later = first_modes(**steps), later_modes(**steps)

    def begin(self, *, everything: bool = False) -> None:
        """Begin to compile what loading and the first request need, or all steps.

        Where it yields the same bits, the first tokens have attention as prompts do, unless their
        own has been compiled before: it is an eighth of what there is to compile.
        """
        decode = self.first[0]
        if self._rehearsal.is_simd and not everything and not self._is_kept(decode):
            self.first[0] = as_prompt(decode)
            self.later.insert(1, decode)  # after prompts with several rows of logits
        needed = self._rehearsal.of_modes(self.first + self.later * everything)
        self._began = time.perf_counter()
        for programs, first, specs in zip(self._placed, self._packing, needed, strict=True):
            self._waiting += programs.request([*first, *longest_first(specs)])
            self.n_wanted += len(first) + len(specs)
        for future in self._waiting:
            future.add_done_callback(self._note)

    def __str__(self) -> str:
        n = self.n_missing
        compiled = f"{n} programs compiled in {self._ended - self._began:.1f} s, " if n else ""
        return f"{compiled}{self.n_wanted - n} programs from the cache"

    @property
    def progress(self) -> float:
        """The share of what was missing that has been compiled since ``begin``."""
        n = len(self._waiting)
        return sum(future.done() for future in self._waiting) / n if n else 1.0

    @property
    def n_missing(self) -> int:
        """Programs that were not on the disk."""
        return len(self._waiting)

    def wait(self, seconds: float) -> bool:
        """Wait until all is compiled; False after so many seconds. Raises BuildError."""
        left = [future for future in self._waiting if not future.done()]
        for future in left:
            try:
                future.result(seconds)
            except TimeoutError:
                return False
        for future in self._waiting:
            future.result()
        return True

    def check_kept(self) -> None:
        """Raises EngineError if later starts will not find what has been compiled."""
        for programs in self._placed:
            if (folder := programs.unwritable) is not None:
                raise EngineError(f"compiled programs cannot be kept in {folder}")

    def stop(self) -> None:
        """Loading has ended early: so does all compiling."""
        for programs in self._placed:
            programs.stop()

    def end(self) -> None:
        """Let the compilers' processes end that have nothing to do."""
        for programs in self._placed:
            programs.end_compilers()

    def continue_later(self) -> None:
        """Have what later steps need compiled at low priority."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="compiling", daemon=True)
            self._thread.start()

    @property
    def continues(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def ready(self, mode: Mode) -> bool:
        """Whether a mode can be recorded at once."""
        needed = self._rehearsal.programs(mode)
        return all(
            programs.has(specs) for programs, specs in zip(self._placed, needed, strict=True)
        )

    def _is_kept(self, mode: Mode) -> bool:
        """Whether all that a mode needs is on the disk."""
        needed = self._rehearsal.programs(mode)
        return all(
            programs.load(specs) for programs, specs in zip(self._placed, needed, strict=True)
        )

    def _note(self, future: Future[bytes]) -> None:
        self._ended = time.perf_counter()

    def _run(self) -> None:
        try:
            futures = list[Future[bytes]]()
            for mode in self.later:
                needed = self._rehearsal.programs(mode)
                for programs, specs in zip(self._placed, needed, strict=True):
                    futures += programs.request(longest_first(specs), background=True)
            for future in futures:
                error = future.exception()  # of which who needs the program hears
                if isinstance(error, BuildError) and (forms := error.reject()):
                    log.warning("the next start does without %s: %.500s", ", ".join(forms), error)
        except Exception:
            log.exception("programs for later steps are not compiled ahead")
        finally:
            self.end()


def longest_first(specs: Sequence[Spec]) -> list[Spec]:
    """In the order in which two compilers are done soonest, as far as can be told."""
    return sorted(specs, key=lambda spec: -_length(spec))


def _length(spec: Spec) -> float:
    """How long a program takes to compile, roughly."""
    name, tiles = Path(spec.source).stem, (d[3:] for d in spec.defines if d.startswith("NT="))
    kind = 10 if name.startswith("mat") else 5 if name.startswith("attention") else 1
    return kind + int(next(tiles, "0"))
