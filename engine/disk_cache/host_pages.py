"""Pages in the host's memory below a limit, for devices with memory of their own.

It takes and gives what a ``Folder`` does, and gives up what a folder would: what was used longest
ago, of a chain its end. It is one engine's, and ends with it.
"""

from __future__ import annotations

import threading

from msgspec import Struct

from gguf_serve.engine.disk_cache.folder import EVICTED_SHARE, Folder
from gguf_serve.engine.disk_cache.names import PageName
from gguf_serve.engine.disk_cache.page_file import Kind


class _Page(Struct):
    name: PageName
    data: memoryview
    used: int  # one of ``stamps``


class HostPages:
    """Its methods may be called from any thread; ``write`` and ``remove`` are one thread's."""

    takes = True  # as Folder's

    def __init__(self, limit: int) -> None:
        """``limit``: bytes."""
        self.limit = limit
        self.n_bytes = self.n_written = self.n_evicted = self.n_corrupt = 0
        self._kept: dict[tuple[bytes, Kind], _Page] = {}
        self._newest = 0
        self._stamping = threading.Lock()

    @property
    def n_files(self) -> int:
        return len(self._kept)

    def has(self, name: PageName, kind: Kind) -> bool:
        return (name.key, kind) in self._kept

    def read(self, name: PageName, kind: Kind, n_data: int) -> memoryview | None:
        """The ``n_data`` bytes of a page; None if there are none."""
        page = self._kept.get((name.key, kind))
        return page.data if page and page.name == name and page.data.nbytes == n_data else None

    def touch(self, name: PageName, kind: Kind, stamp: int) -> bool:
        """Take note that a page has been used, at one of ``stamps``; False: there is none."""
        page = self._kept.get((name.key, kind))
        if page is not None:
            page.used = stamp
        return page is not None

    def stamps(self, n: int) -> list[int]:
        """Times of use for the pages of a chain: the last page's is the first."""
        with self._stamping:
            self._newest += n
            return [self._newest - i for i in range(n)]

    def remove(self, name: PageName, kind: Kind) -> None:
        page = self._kept.pop((name.key, kind), None)
        self.n_bytes -= page.data.nbytes if page else 0

    def write(self, name: PageName, kind: Kind, data: memoryview, stamp: int) -> bool:
        """Keep a copy of a page, used at ``stamp``; False: there is room only in the place of
        pages that were used later, or no memory."""
        if self.n_bytes + data.nbytes > self.limit and not self._make_room(data.nbytes, stamp):
            return False
        try:
            copy = memoryview(data.tobytes())
        except MemoryError:
            return False
        self.remove(name, kind)
        self._kept[name.key, kind] = _Page(name, copy, stamp)
        self.n_bytes += copy.nbytes
        self.n_written += 1
        return True

    def look(self) -> None:
        """Nothing is there but what was written."""

    def _make_room(self, size: int, stamp: int) -> bool:
        """Give up what was used longest ago, and before ``stamp``, until ``size`` bytes and some
        more have room."""
        enough = max(self.limit - size - int(self.limit * EVICTED_SHARE), 0)
        for page, kind in sorted(
            ((page, kind) for (_, kind), page in self._kept.items()), key=lambda kept: kept[0].used
        ):
            if self.n_bytes <= enough or page.used >= stamp:
                break
            self.remove(page.name, kind)
            self.n_evicted += 1
        return self.n_bytes + size <= self.limit


PageStore = Folder | HostPages
