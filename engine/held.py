"""What is kept by the bytes that it takes, not by the number of things."""

from __future__ import annotations

import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)
V = TypeVar("V")


class Budget:
    """Bytes that objects take for as long as anybody has them. May be used from any thread."""

    def __init__(self, most: int) -> None:
        self.most = most
        self.n_bytes = 0
        # Reentrant: an object may end at any moment, in the middle of what is below, too.
        self._lock = threading.RLock()

    def claim(self, owner: object, n_bytes: int, make_room: Callable[[], bool]) -> bool:
        """Count an object's bytes until it is no more; False if there is no room for them even
        after all calls of ``make_room``, which gives up something if it can."""
        while self.n_bytes + n_bytes > self.most:
            if not make_room():
                return False
        with self._lock:
            self.n_bytes += n_bytes
        weakref.finalize(owner, self._free, n_bytes)
        return True

    def _free(self, n_bytes: int) -> None:
        with self._lock:
            self.n_bytes -= n_bytes


class ByteCache(Generic[K, V]):
    """Values of at most ``most`` bytes in all; who was not asked for longest goes first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._kept: OrderedDict[K, tuple[V, int]] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.Lock()

    def __len__(self) -> int:
        return len(self._kept)

    def get(self, key: K) -> V | None:
        with self._lock:
            found = self._kept.get(key)
            if found is None:
                return None
            self._kept.move_to_end(key)
            return found[0]

    def put(self, key: K, value: V, n_bytes: int) -> None:
        self.remove(key)
        with self._lock:
            self._kept[key] = value, n_bytes
            self._n_bytes += n_bytes
        while self._n_bytes > self._most and self.drop():
            pass

    def remove(self, key: K) -> None:
        with self._lock:
            gone = self._kept.pop(key, None)
            self._n_bytes -= gone[1] if gone else 0

    def drop(self) -> bool:
        """Give up the value that was not asked for longest; False if there is none."""
        with self._lock:
            if not self._kept:
                return False
            _, gone = self._kept.popitem(last=False)
            self._n_bytes -= gone[1]
        return True
