"""Which pages hold a second model's K and V too.

A draft model keeps its K and V in pages of its own, numbered as its target's, so that one table
serves both: what finds, shares, copies or evicts a page does so for both. It computes them later
than its target, or never if nobody wants it to guess; here is noted how far it is. Integers and
lists only.
"""

from __future__ import annotations

from gguf_serve.engine.scheduling.page_cache import PageCache, PageCopy, PagedTokens


class Coverage:
    """By page, how many of its rows are computed, counted from the first."""

    def __init__(self, cache: PageCache) -> None:
        self._cache, self._size = cache, cache.page_size
        self._rows = [0] * cache.n_pages
        self._of = [0] * cache.n_pages  # the use of the page that it was in

    def rows_of(self, page: int) -> int:
        """Of a page, as it is used now."""
        return self._rows[page] if self._of[page] == self._cache.n_uses[page] else 0

    def n_covered(self, seq: PagedTokens) -> int:
        """How many leading tokens are computed; the last one never counts."""
        n = 0
        for page in seq.table:
            rows = self.rows_of(page)
            n += rows
            if rows < self._size:
                break
        return min(n, len(seq.tokens) - 1)

    def mark(self, seq: PagedTokens, start: int, end: int) -> None:
        """The tokens from ``start`` to before ``end`` are computed, and those before them."""
        for i in range(start // self._size, -(-end // self._size)):
            page, rows = seq.table[i], min(end - i * self._size, self._size)
            self.note(page, max(self.rows_of(page), rows))

    def note(self, page: int, n_rows: int) -> None:
        """So many rows of a page, as it is used now, are computed."""
        self._rows[page], self._of[page] = n_rows, self._cache.n_uses[page]

    def stamp(self, seq: PagedTokens, start: int, end: int) -> tuple[tuple[int, int], ...]:
        """What is the same for as long as these tokens' pages are, and their use."""
        pages = seq.table[start // self._size : -(-end // self._size)]
        return tuple((page, self._cache.n_uses[page]) for page in pages)

    def copy(self, copy: PageCopy) -> None:
        """A page's first rows go to another page."""
        self.note(copy.target, min(self.rows_of(copy.source), copy.n_rows))
