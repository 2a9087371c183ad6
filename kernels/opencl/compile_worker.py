"""A process that compiles programs for another one, and ends with it.

    python -m gguf_serve.kernels.opencl.compile_worker PLATFORM DEVICE [background]

It takes a line of JSON per program ({"source", "options"}) and answers with one ({"size"} or
{"error"}), then the binary's bytes. A compiler's memory, and its crashes, stay here.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import sys
import threading
import warnings
from typing import Any, BinaryIO

NICE = 19


def yield_to_others() -> None:
    """Run only when no other process wants the processor."""
    with contextlib.suppress(OSError, AttributeError):
        os.nice(NICE)
    with contextlib.suppress(OSError, AttributeError):
        os.sched_setscheduler(0, os.SCHED_IDLE, os.sched_param(0))


def compile_program(context: Any, source: str, options: list[str]) -> Any:
    """A program of one device, built; RuntimeError has the compiler's log."""
    import pyopencl as cl

    return cl.Program(context, source).build(options=options)


def _jobs() -> queue.SimpleQueue[dict[str, Any]]:
    """What the parent asks for. Its end ends this process, in the middle of a program too."""
    jobs: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            jobs.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return jobs


def _answer(out: BinaryIO, head: dict[str, Any], data: bytes = b"") -> None:
    out.write(json.dumps(head).encode() + b"\n" + data)
    out.flush()


def main() -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # drivers print
    jobs = _jobs()
    if "background" in sys.argv[3:]:
        yield_to_others()
    warnings.simplefilter("ignore")
    import pyopencl as cl

    from gguf_serve.kernels.opencl.platforms import find_device

    context = cl.Context([find_device(*sys.argv[1:3])])
    _answer(out, {"ready": True})
    while True:
        job = jobs.get()
        try:
            program = compile_program(context, job["source"], job["options"])
            binary = bytes(program.get_info(cl.program_info.BINARIES)[0])
        except cl.Error as error:
            _answer(out, {"error": str(error)})
        else:
            _answer(out, {"size": len(binary)}, binary)


if __name__ == "__main__":
    main()
