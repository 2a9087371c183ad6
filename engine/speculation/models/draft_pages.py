"""What a model that guesses has in pages with the numbers of its target's.

These are K and V of its own layers, of as many rows as it has come to. So what is found, copied or
saved of a page is of both.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from gguf_serve.engine.forward.cached_bytes import Bytes, PageBytes
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.scheduling.page_cache import PageCache, PageCopy
from gguf_serve.engine.speculation.models.coverage import Coverage


class DraftPages:
    """PagesBeside. A page's bytes are those of the models, one after the other, and the number of
    rows (uint32, little-endian)."""

    _ROWS = np.dtype("<u4")

    def __init__(
        self, models: Sequence[Runner], cache: PageCache, made_with: Mapping[str, Any]
    ) -> None:
        """``cache``: the target's; ``made_with``: see PagesBeside."""
        self._models, self._bytes = models, PageBytes(models)
        self._size, self.made_with = cache.page_size, made_with
        self.coverage = Coverage(cache)

    @property
    def page_bytes(self) -> int:
        return self._bytes.n_bytes + self._ROWS.itemsize

    @property
    def are_of_target(self) -> bool:
        """Whether the models have none of their own."""
        return not self._bytes.n_bytes

    def copy(self, copies: Sequence[PageCopy]) -> None:
        for copy in copies:
            for model in self._models:
                for pages in model.pages:
                    pages.copy_page(copy.source, copy.target)
            self.coverage.copy(copy)

    def is_whole(self, page: int) -> bool:
        return self.coverage.rows_of(page) == self._size

    def read_page(self, page: int) -> Bytes:
        data = np.empty(self.page_bytes, np.uint8)
        self._bytes.read(page, data)
        data[self._bytes.n_bytes :].view(self._ROWS)[0] = self.coverage.rows_of(page)
        return data

    def write_page(self, page: int, data: Bytes) -> None:
        n_bytes = self._bytes.n_bytes
        n_rows = int.from_bytes(data[n_bytes:].tobytes(), "little")
        if data.nbytes != self.page_bytes or n_rows > self._size:
            raise ValueError(
                f"{n_rows} rows in {data.nbytes} bytes, expected at most {self._size} in "
                f"{self.page_bytes}"
            )
        self._bytes.write(page, data)
        self.coverage.note(page, n_rows)
