"""What an encoder has recorded, by the size of its input: the sizes that came last are kept."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

MAX_RECORDINGS = 4  # each has its own memory on the device
Size = TypeVar("Size", bound=Hashable)
Recording = TypeVar("Recording")


class Recordings(Generic[Size, Recording]):
    def __init__(self, record: Callable[[Size], Recording], most: int = MAX_RECORDINGS) -> None:
        self._record, self._most = record, most
        self._kept: OrderedDict[Size, Recording] = OrderedDict()

    def of(self, size: Size) -> Recording:
        """The recording for a size; a new one takes the place of the least recently used."""
        if size not in self._kept:
            while len(self._kept) >= self._most:  # before memory for another is taken
                self._kept.popitem(last=False)
            self._kept[size] = self._record(size)
        self._kept.move_to_end(size)
        return self._kept[size]
