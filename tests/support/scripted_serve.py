"""Not a test: ``serve`` with a slow engine that needs no device, for test_launch.py.

It loads until there is a file LOADED, fails to with FAIL, and counts until it is cancelled; with
STUCK it takes no notice of that. The machine has DEVICES devices, else one.
"""

from __future__ import annotations

import os
import sys
import threading
import time
import types
from pathlib import Path
from types import SimpleNamespace
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.request import Delta, Finished, Started, Timings
from gguf_serve.server.cli import main


class Engine:
    n_ctx, n_slots, healthy, fault = 2048, 2, True, ""
    speech = None
    tokenizer = SimpleNamespace(
        n_vocab=256, bos_id=None, eos_id=None, encode=lambda text, **_: list(text.encode())
    )

    def __init__(self, path: Path, options: Any) -> None:
        self.info = SimpleNamespace(
            path=path,
            name="Scripted",
            architecture="llama",
            size_label="1M",
            n_params=1_540_000_000,
            n_bytes=986_000_000,
            file_type="Q4_K_M",
            tensor_types={"Q4_K": 168, "F32": 141},
            device_name="Fake device",
            driver=f"options {options}",
            kv_bytes=2**27,
            loading="0.1 s: 1 MiB packed in 0.1 s",
        )
        self.stops: dict[int, threading.Event] = {}
        self.threads: list[threading.Thread] = []

    def submit(self, request: Any, on_event: Any) -> int:
        ticket = len(self.threads)
        self.stops[ticket] = threading.Event()
        self.threads.append(threading.Thread(target=self.count, args=(ticket, on_event)))
        self.threads[-1].start()
        return ticket

    def count(self, ticket: int, on_event: Any) -> None:
        on_event(Started(1, 0, 0))
        while not self.stops[ticket].wait(0.02):
            on_event(Delta("x", (120,)))
        while "STUCK" in os.environ:
            time.sleep(1)
        on_event(Finished("cancelled", Timings()))

    def cancel(self, ticket: int) -> None:
        self.stops[ticket].set()

    def adapters(self) -> tuple[()]:
        return ()

    def close(self) -> None:
        for ticket, thread in enumerate(self.threads):
            self.stops[ticket].set()
            thread.join()


def load_engine(path: Path, options: Any, progress: Any, wires: Any) -> Engine:
    if "FAIL" in os.environ:
        raise ModelError(f"{path.name}: unknown architecture 'abacus'")
    while "LOADED" in os.environ and not os.path.exists(os.environ["LOADED"]):
        progress(0.5)
        time.sleep(0.02)
    progress(1.0)
    return Engine(path, options)


module = types.ModuleType("gguf_serve.engine.engine")
module.load_engine = load_engine  # type: ignore[attr-defined]
module.no_driver = lambda: "no driver; install one"  # type: ignore[attr-defined]
module.list_devices = lambda: (
    int(os.environ.get("DEVICES", "1"))
    * [  # type: ignore[attr-defined]
        SimpleNamespace(
            index=0,
            name="Fake device",
            platform="Nobody",
            driver="fake 1.0",
            kind="cpu",
            memory_bytes=2**33,
            compute_units=2,
            capabilities="work-groups of 64",
        )
    ]
)
module.free_memory = lambda device: device.memory_bytes // 2  # type: ignore[attr-defined]
sys.modules["gguf_serve.engine.engine"] = module

if __name__ == "__main__":
    main(prog_name="serve")
