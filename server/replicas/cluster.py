"""A front and the process that starts its engines by Ray (ray_cluster.py)."""

from __future__ import annotations

import json
import logging
import os
import pickle
import secrets
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from msgspec.structs import replace

from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.loading.texts import Texts, load_texts
from gguf_serve.engine.options import EngineOptions
from gguf_serve.server.interface import Engine
from gguf_serve.server.options.settings import Settings
from gguf_serve.server.replicas.ray_cluster import Wanted
from gguf_serve.server.replicas.remote_engine import RemoteEngine

log = logging.getLogger(__name__)
KEY_BYTES = 32
STEP_SECONDS = 0.2
AGAIN_SECONDS = 5.0  # until Ray's driver is started anew
LEAVE_SECONDS = 15.0  # that it has to leave, beyond the drain timeout


def start_replicas(
    path: Path, options: EngineOptions, settings: Settings, report: Callable[[float], None]
) -> Engine:
    """Start the engines that the settings want, and wait for the first.

    Raises EngineError without Ray, or if no engine comes; what ``report`` raises ends the wait.
    """
    assert settings.replicas is not None
    texts = load_texts(path, options)
    least, most = settings.replicas
    key = secrets.token_bytes(KEY_BYTES)
    driver = Driver(
        Wanted(path, options, least, most, settings.ray_address, settings.drain_timeout, key)
    )
    engine: Front | None = None
    try:
        while engine is None or not engine.wait(STEP_SECONDS):
            report(0.5)
            if driver.failure:
                raise EngineError(driver.failure)
            if engine is None and driver.wait_for_key(STEP_SECONDS):
                engine = Front(texts, driver)
    except BaseException:
        driver.close()
        raise
    return engine


class Front(RemoteEngine):
    """One whose engines are Ray's."""

    def __init__(self, texts: Texts, driver: Driver) -> None:
        assert driver.key is not None
        super().__init__(texts, driver.key)
        self._driver = driver
        driver.on_hosts(self.update)

    def close(self) -> None:
        super().close()
        self._driver.close()

    release = close


class Driver:
    """The other process, started anew if it ends."""

    def __init__(self, wanted: Wanted) -> None:
        self.key: bytes | None = None
        self.failure = ""
        self._wanted = wanted
        self._hosts: dict[str, tuple[str, int]] = {}
        self._on_hosts: Callable[[dict[str, tuple[str, int]]], None] = lambda hosts: None
        self._has_key, self._closed = threading.Event(), threading.Event()
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="driver", daemon=True)
        self._thread.start()

    def wait_for_key(self, seconds: float) -> bool:
        return self._has_key.wait(seconds)

    def on_hosts(self, call: Callable[[dict[str, tuple[str, int]]], None]) -> None:
        """Have it called with the engines' addresses, now and whenever they change."""
        self._on_hosts = call
        call(self._hosts)

    def close(self) -> None:
        """Have the process leave the cluster, and wait for that."""
        with self._lock:
            self._closed.set()
            process = self._process
        if process is None:
            return
        if process.stdin is not None:
            with suppress(OSError):
                process.stdin.close()
        try:
            process.wait(LEAVE_SECONDS + self._wanted.drain_timeout)
        except subprocess.TimeoutExpired:
            process.kill()

    def _run(self) -> None:
        while not self._closed.is_set():
            with self._lock:
                if self._closed.is_set():
                    return
                process = self._process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "gguf_serve.server.replicas.ray_cluster"],
                    stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
                    env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
                )  # fmt: skip
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(OSError):
                key = self.key or self._wanted.key  # engines that are there have it
                process.stdin.write(pickle.dumps(replace(self._wanted, key=key)))
                process.stdin.flush()
            self._listen(process.stdout)
            code = process.wait()
            if not self._closed.is_set() and not self.failure:
                log.warning("Ray's driver has ended with code %d: it is started anew", code)
            self._closed.wait(AGAIN_SECONDS)

    def _listen(self, lines: IO[bytes]) -> None:
        for line in lines:
            try:
                message: dict[str, Any] = json.loads(line)
            except ValueError:  # what Ray prints
                log.debug("Ray: %s", line.decode(errors="replace").rstrip())
                continue
            if "key" in message:
                self.key = bytes.fromhex(message["key"])
                self._has_key.set()
            if "failure" in message:
                self.failure = message["failure"]
                if self._has_key.is_set():  # else it is said by who waits for the first engine
                    log.error("%s", self.failure)
            if "hosts" in message:
                self.failure = ""
                self._hosts = {id: (host, port) for id, (host, port) in message["hosts"].items()}
                self._on_hosts(self._hosts)
