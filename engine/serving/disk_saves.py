"""Pages on their way to the folder: chains one after the other, a few pages between two steps.

A thread finds out what of a chain is missing in the folder; the engine's thread copies that from
the device, as long as it is still in the cache; the thread writes it. Whatever does not go on is
left out: a chain is offered again when it is next used.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Hashable
from collections.abc import Sequence as Items

from msgspec import Struct

from gguf_serve.engine.disk_cache.host_pages import PageStore
from gguf_serve.engine.disk_cache.names import PageName
from gguf_serve.engine.disk_cache.page_file import Kind
from gguf_serve.engine.disk_cache.worker import Worker
from gguf_serve.engine.forward.cached_bytes import Bytes, CachedBytes
from gguf_serve.engine.held import Budget
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Sequence
from gguf_serve.engine.serving.disk_names import DiskNames

MOST_BYTES = 64 << 20  # of pages that wait to be written, unless a single one is larger
MOST_CHAINS = 256  # that wait; of more, the first are left out


class _Chain(Struct, eq=False):
    """What is to be kept; ``missing`` is None until the thread has looked."""

    seq: Sequence
    tokens: Items[int]
    states: Items[int] = ()  # positions of its checkpoints
    names: Items[PageName] = ()
    stamps: Items[int] = ()
    missing: deque[tuple[Kind, int]] | None = None  # kinds and numbers of pages
    has_failed: bool = False

    @property
    def salt(self) -> Hashable:
        return self.seq.salt


class DiskSaves:
    """What is to be written. In the engine's thread; ``wake`` is called from another one."""

    def __init__(
        self,
        store: PageStore,
        names: DiskNames,
        scheduler: Scheduler,
        cached: CachedBytes,
        min_tokens: int,
        wake: Callable[[], None],
    ) -> None:
        self._store, self._names, self._cached = store, names, cached
        self._scheduler, self._min_tokens, self._wake = scheduler, min_tokens, wake
        self._size = scheduler.cache.page_size
        self._waiting: deque[_Chain] = deque(maxlen=MOST_CHAINS)
        self._chain: _Chain | None = None
        self._budget = Budget(max(MOST_BYTES, cached.most_bytes))
        self._held: Bytes | None = None  # read, but without room yet
        self.has_failed = False  # something could not be written
        self._worker = Worker("disk cache writer")
        self._worker.do(store.look)

    def offer(self, seq: Sequence) -> None:
        """Keep what has been computed of a sequence, in full pages."""
        n = len(seq.tokens) // self._size * self._size
        if seq.n_encoder or not (seq.share and seq.keep and n >= self._min_tokens):
            return
        if self._store.takes:
            self._waiting.append(_Chain(seq, seq.tokens[:n]))
        else:
            self.has_failed = True

    def forget(self, seq: Sequence) -> None:
        """Delete what is kept of a sequence's tokens."""
        tokens = seq.tokens[:]

        def remove() -> None:
            for name in self._names.of(seq, tokens):
                for kind in Kind:
                    self._store.remove(*self._names.file(name, kind))

        self._worker.do(remove)

    @property
    def has_work(self) -> bool:
        """Whether there is something to be done at once."""
        chain = self._chain
        if chain is None:
            return bool(self._waiting)
        return chain.missing is not None and (self._held is None or self._has_room(self._held))

    @property
    def is_behind(self) -> bool:
        """Whether something is still on its way; from any thread."""
        return bool(self._waiting) or self._chain is not None or self._budget.n_bytes > 0

    def work(self, seconds: float) -> None:
        """Do what can be done, for about so long."""
        end = time.perf_counter() + seconds
        while self.has_work:
            if self._chain is None:
                self._begin(self._waiting[0])
                self._waiting.popleft()
            elif self._go_on(self._chain, end):
                self._chain = None
            elif time.perf_counter() >= end:
                return

    def close(self, seconds: float) -> None:
        """Let the thread write what it has, for so long at most."""
        self._worker.close(seconds)

    def _begin(self, chain: _Chain) -> None:
        cache, checkpoints = self._scheduler.cache, self._scheduler.checkpoints
        n = cache.find_pages(chain.tokens, chain.salt)[1] // self._size * self._size
        if checkpoints is not None:  # what follows the last checkpoint is of no use
            positions, most = list[int](), n
            while found := checkpoints.find(chain.tokens, chain.salt, most, self._size):
                positions.append(found.position)
                most = found.position - 1
            chain.states, n = positions, max(positions, default=0)
        if n < self._min_tokens:
            return
        chain.tokens = chain.tokens[:n]
        self._chain = chain
        self._worker.do(lambda: self._look(chain))

    def _look(self, chain: _Chain) -> None:
        """In the thread: which files are there? These have been used now."""
        missing = deque[tuple[Kind, int]]()
        try:
            chain.names = self._names.of(chain.seq, chain.tokens)
            chain.stamps = self._store.stamps(len(chain.names))
            kinds = [Kind.KV, Kind.DRAFT] if self._cached.beside else [Kind.KV]
            pages = [(kind, i) for kind in kinds for i in range(len(chain.names))]
            states = [(Kind.STATE, position // self._size - 1) for position in chain.states]
            for kind, i in [*pages, *states]:
                file = self._names.file(chain.names[i], kind)
                if not self._store.touch(*file, chain.stamps[i]):
                    missing.append((kind, i))
        finally:
            chain.missing = missing
            self._wake()

    def _go_on(self, chain: _Chain, end: float) -> bool:
        """Hand pages to the thread until there is no room or time; whether that were all."""
        missing = chain.missing
        table = self._scheduler.cache.find_pages(chain.tokens, chain.salt)[0] if missing else []
        while missing and not chain.has_failed:
            kind, i = missing[0]
            if kind is Kind.DRAFT and not self._is_drafted(table[i : i + 1]):
                missing.popleft()  # when the sequence ends it may be
                continue
            if self._held is None:
                self._held = self._read(chain, kind, i, table)
            data = self._held
            if data is None:  # it has left the cache meanwhile
                break
            if not self._budget.claim(data, data.nbytes, lambda: False):
                return False
            self._held = None
            missing.popleft()
            self._hand_over(chain, kind, i, data)
            if time.perf_counter() >= end:
                return False
        self._held = None
        return True

    def _is_drafted(self, pages: Items[int]) -> bool:
        """Whether the model that guesses has come to the end of these."""
        beside = self._cached.beside
        return beside is not None and bool(pages) and all(map(beside.is_whole, pages))

    def _read(self, chain: _Chain, kind: Kind, i: int, table: Items[int]) -> Bytes | None:
        end = (i + 1) * self._size
        if kind is Kind.KV:
            return self._cached.read_page(table[i]) if i < len(table) else None
        if kind is Kind.DRAFT and self._cached.beside is not None:
            return self._cached.beside.read_page(table[i])
        position, data = self._cached.read_state(chain.tokens, chain.salt, end, self._size)
        return data[:] if position == end else None  # the array itself is the checkpoint's

    def _hand_over(self, chain: _Chain, kind: Kind, i: int, data: Bytes) -> None:
        held = [data]  # the thread's alone, so that its room is free as soon as it is written

        def write() -> None:
            view = held.pop().data
            if not chain.has_failed:
                file = self._names.file(chain.names[i], kind)
                chain.has_failed = not self._store.write(*file, view, chain.stamps[i])
                self.has_failed |= chain.has_failed
            del view
            self._wake()

        self._worker.do(write)

    def _has_room(self, data: Bytes) -> bool:
        return self._budget.n_bytes + data.nbytes <= self._budget.most
