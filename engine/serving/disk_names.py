"""What the pages of a request are called on a disk (disk_cache/names.py)."""

from __future__ import annotations

from collections.abc import Sequence as Items

from gguf_serve.engine.disk_cache.names import PageName, beginning, beside, chain
from gguf_serve.engine.disk_cache.page_file import Kind
from gguf_serve.engine.scheduling.sequence import Sequence


class DiskNames:
    """Of one engine's sequences. May be used from any thread."""

    def __init__(self, root: bytes, page_size: int, draft: bytes = b"") -> None:
        """``draft``: the root of a model that guesses."""
        self._root, self._page_size, self._draft = root, page_size, draft

    def of(self, seq: Sequence, tokens: Items[int]) -> list[PageName]:
        """Of the full pages of the sequence's first tokens."""
        begin = beginning(self._root, seq.adapters, seq.adapter_starts, seq.request.cache_salt)
        contents = [(span.start, span.key) for span in seq.request.media]
        return list(chain(self._root, begin, tokens, self._page_size, contents))

    def file(self, name: PageName, kind: Kind) -> tuple[PageName, Kind]:
        """What the folder calls what there is of a page."""
        return beside(self._draft, name) if kind is Kind.DRAFT else name, kind
