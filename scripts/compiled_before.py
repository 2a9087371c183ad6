"""What check_compile.py has found out, kept in a file, so that it can be done in pieces.

A program counts as compiled where its text after the preprocessor was, for the same driver and
processor: many defines change nothing in many programs, and a change of a file that all include
changes little in most.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from gguf_serve.kernels.opencl.compiling.program_cache import source_hash
from gguf_serve.kernels.opencl.program import Spec
from gguf_serve.kernels.opencl.sources import SOURCES


class Outcome(NamedTuple):
    """``seconds`` of processor time, or why it failed."""

    seconds: float
    error: str = ""


class Compiled:
    """Outcomes by the hashes of programs, and of their texts. Thread-safe."""

    def __init__(self, path: Path | None = None) -> None:
        """``path``: lines of JSON, which are read and added to; None: nothing is kept."""
        self._path = path
        self._known: dict[str, Outcome] = {}
        self._lock = threading.Lock()
        if path is not None and path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                *hashes, seconds, error = json.loads(line)
                self._known |= dict.fromkeys(hashes, Outcome(seconds, error))

    def find(self, program: str) -> Outcome | None:
        with self._lock:
            return self._known.get(program)

    def add(self, hashes: Sequence[str], outcome: Outcome) -> None:
        """A program's outcome, under its hash and that of its text."""
        with self._lock:
            self._known |= dict.fromkeys(hashes, outcome)
            if self._path is not None:
                with self._path.open("a", encoding="utf-8") as file:
                    file.write(json.dumps([*hashes, *outcome]) + "\n")


def program_hash(place: str, spec: Spec) -> str:
    """``place``: the driver and the processor that it is compiled by and for."""
    return _hash(place, source_hash(spec.source), *spec.defines)


def text_hash(place: str, spec: Spec) -> str | None:
    """Of what the preprocessor leaves of a program; None where there is no C compiler."""
    defines = [f"-D{define}" for define in spec.defines]
    command = ["cc", "-E", "-P", "-x", "c", f"-I{SOURCES}", *defines, str(SOURCES / spec.source)]
    try:
        text = subprocess.run(command, capture_output=True, check=True, text=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    return _hash(place, "text", text)


def _hash(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
