"""A process that compiles programs for another one, and ends with it.

    python -m gguf_serve.kernels.opencl.compiling.compile_worker [background]

It takes lines of JSON. The first names its device ({"platform", "device", "environment"}), every
other one a program ({"source", "options"}) or a form of products to be tried ({"probe", "kind"}).
It answers with a line ({"ready"}, {"size"} and then the binary's bytes, {"works"}, or {"error"}).
A compiler's memory, and its crashes, stay here.
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


def _messages() -> queue.SimpleQueue[dict[str, Any]]:
    """What the parent asks for. Its end ends this process, in the middle of a program too."""
    messages: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()

    def read() -> None:
        for line in sys.stdin.buffer:
            messages.put(json.loads(line))
        os._exit(0)

    threading.Thread(target=read, daemon=True).start()
    return messages


def _say(out: BinaryIO, head: dict[str, Any], data: bytes = b"") -> None:
    out.write(json.dumps(head).encode() + b"\n" + data)
    out.flush()


def _answer(context: Any, wanted: dict[str, Any]) -> tuple[dict[str, Any], bytes]:
    import pyopencl as cl

    from gguf_serve.kernels.opencl.compiling.probe import works

    try:
        if "probe" in wanted:
            return {"works": works(context, wanted["probe"], wanted["kind"])}, b""
        program = compile_program(context, wanted["source"], wanted["options"])
        binary = bytes(program.get_info(cl.program_info.BINARIES)[0])
    except cl.Error as error:
        return {"error": str(error)}, b""
    return {"size": len(binary)}, binary


def main() -> None:
    out = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # drivers print
    messages = _messages()
    if "background" in sys.argv[1:]:
        yield_to_others()
    warnings.simplefilter("ignore")
    import pyopencl as cl

    from gguf_serve.kernels.opencl.platforms import find_device

    device = messages.get()
    os.environ.update(device["environment"])  # before the drivers are looked for
    context = cl.Context([find_device(device["platform"], device["device"])])
    _say(out, {"ready": True})
    while True:
        _say(out, *_answer(context, messages.get()))


if __name__ == "__main__":
    main()
