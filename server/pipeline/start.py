"""Starting the stages of a model: processes of this machine, or actors of a Ray cluster."""

from __future__ import annotations

import json
import os
import pickle
import queue
import secrets
import subprocess
import sys
import threading
from contextlib import suppress
from typing import Any

from gguf_serve.engine.errors import EngineError
from gguf_serve.server.options.settings import Settings
from gguf_serve.server.pipeline.wire import Address, ChannelWire, lead

KEY_BYTES = 32


def start_stages(settings: Settings) -> list[ChannelWire]:
    """Wires to all stages that the settings want but the first, which is this process; the others
    end when it closes them.

    Raises EngineError if one cannot be started.
    """
    refuse(settings)
    return connect(Processes(settings.pipeline - 1, settings.ray_address))


def connect(processes: Processes) -> list[ChannelWire]:
    """Wires to processes, which end with them, or if there cannot be any."""
    try:
        return lead(processes.addresses(), processes.key, processes.end)
    except BaseException:
        processes.end()
        raise


def refuse(settings: Settings) -> None:
    """EngineError for settings that do not go with stages."""
    given = {
        "--replicas": settings.replicas is not None,
        "--slot-save-path": settings.slot_save_path is not None,
    }
    if found := [name for name, is_given in given.items() if is_given]:
        raise EngineError(f"--pipeline does not go with {', '.join(found)}")


class Processes:
    """The processes of all stages but the first, or the one that has Ray start them."""

    def __init__(self, n: int, ray_address: str | None) -> None:
        self.key = secrets.token_bytes(KEY_BYTES)
        self._by_ray = ray_address is not None
        if ray_address is None:
            self._started = [Child("stage", self.key) for _ in range(n)]
        else:
            self._started = [Child("ray_stages", (ray_address, n, self.key))]

    def addresses(self) -> list[Address]:
        """Where the stages listen, when they do; EngineError if they do not come to it."""
        told = [child.tell() for child in self._started]
        if self._by_ray:
            return [(host, port) for host, port in told[0]["stages"]]
        return [("127.0.0.1", each["port"]) for each in told]

    def end(self) -> None:
        for child in self._started:
            child.end()


class Child:
    """A module of this package as a program, which ends with its input."""

    def __init__(self, module: str, given: object) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", f"gguf_serve.server.pipeline.{module}"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )  # fmt: skip
        assert self._process.stdin is not None
        with suppress(OSError):  # it has ended; tell() says so
            self._process.stdin.write(pickle.dumps(given))
            self._process.stdin.flush()
        self._told: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        threading.Thread(target=self._listen, name=module, daemon=True).start()

    def tell(self) -> dict[str, Any]:
        """What it writes first, a JSON object; EngineError if it writes none, or a failure."""
        message = self._told.get()
        if "failure" in message:
            raise EngineError(message["failure"])
        return message

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as lines:
            for line in lines:
                with suppress(ValueError):  # what Ray prints
                    self._told.put(json.loads(line))
        code = self._process.wait()
        self._told.put({"failure": f"a process of the pipeline has ended with code {code}"})

    def end(self) -> None:
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()
