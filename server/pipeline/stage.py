"""The process of a stage: it waits for the first one, and has its layers until that is gone.

As a program it reads a pickled key from its input, writes the port that it listens at to its
output, as JSON, and ends with its input.
"""

from __future__ import annotations

import gc
import json
import logging
import os
import pickle
import socket
import sys
import threading

from gguf_serve.engine.engine import serve_stage
from gguf_serve.engine.errors import EngineError
from gguf_serve.server.pipeline.wire import join

log = logging.getLogger(__name__)


def run_stage(listener: socket.socket, key: bytes) -> None:
    """Be a stage for the one first stage that comes; returns when it has gone."""
    wires = list(join(listener, key))
    listener.close()
    first = wires[0]
    assert first is not None
    gc.disable()  # what loading makes stays
    try:
        serve_stage(first, wires)
    except EngineError as error:
        log.info("this stage ends: %s", error)
    finally:
        for wire in wires:
            if wire is not None:
                wire.close()


def main() -> int:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s stage: %(message)s")
    key: bytes = pickle.load(sys.stdin.buffer)
    listener = socket.create_server(("127.0.0.1", 0))
    print(json.dumps({"port": listener.getsockname()[1]}), flush=True)

    def watch() -> None:
        while os.read(sys.stdin.fileno(), 4096):
            pass
        os._exit(0)  # the first stage's process is gone, or wants this one to be

    threading.Thread(target=watch, daemon=True).start()
    run_stage(listener, key)
    return 0


if __name__ == "__main__":
    sys.exit(main())
