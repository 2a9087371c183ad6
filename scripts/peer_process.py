"""A worker in another interpreter that answers JSON lines, one at a time.

Between questions it is blocked on its standard input and uses no processor.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

PEER_PYTHON = "GGUF_SERVE_PEER_PYTHON"
Answer = dict[str, Any]


class PeerError(Exception):
    """The worker has failed; the message has its last words."""


class PeerProcess:
    """Our side: starts ``script`` with ``python`` and asks it."""

    def __init__(self, python: str, script: Path) -> None:
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 (closed with the process)
        try:
            self._process = subprocess.Popen(
                [python, str(script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._log,
                text=True,
            )
        except OSError as error:
            raise PeerError(f"cannot start the peer's interpreter {python}: {error}") from None

    def ask(self, op: str, **arguments: Any) -> Answer:
        """Ask and wait for the answer; PeerError if there is none."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        try:
            stdin.write(json.dumps({"op": op, **arguments}) + "\n")
            stdin.flush()
        except BrokenPipeError:
            raise PeerError(self._last_words()) from None
        line = stdout.readline()
        if not line:
            raise PeerError(self._last_words())
        answer: Answer = json.loads(line)
        if "error" in answer:
            raise PeerError(f"the peer's worker: {answer['error']}")
        return answer

    def _last_words(self) -> str:
        status = self._process.wait()
        self._log.seek(0)
        lines = self._log.read().decode(errors="replace").splitlines()
        return f"the peer's worker ended with status {status}: {' | '.join(lines[-3:])}"

    def close(self) -> None:
        if self._process.stdin is not None:
            self._process.stdin.close()
        self._process.wait()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._log.close()


def peer_python(given: str | None) -> str:
    """The interpreter that has llama-cpp-python: the option, the variable, or this one."""
    return given or os.environ.get(PEER_PYTHON) or sys.executable


def answer_lines(answer: Callable[[Answer], Answer]) -> None:
    """The worker's side: answer every line of standard input until it ends.

    What a library prints goes to standard error, so that it cannot break an answer.
    """
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for line in sys.stdin:
        try:
            result = answer(json.loads(line))
        except Exception as error:
            result = {"error": f"{type(error).__name__}: {error}"}
        out.write(json.dumps(result) + "\n")
        out.flush()
