"""A thread for what takes long, which nobody waits for."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from queue import SimpleQueue

log = logging.getLogger(__name__)


class Worker:
    """Does one thing after the other. A daemon: a disk that hangs must not keep the process."""

    def __init__(self, name: str) -> None:
        self._actions: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def do(self, action: Callable[[], None]) -> None:
        self._actions.put(action)

    def close(self, seconds: float) -> None:
        """End when all is done; wait so long for it."""
        self._actions.put(None)
        self._thread.join(seconds)

    def _run(self) -> None:
        while (action := self._actions.get()) is not None:
            try:
                action()
            except Exception:
                log.exception("the cache on disk: %s has failed", self._thread.name)
