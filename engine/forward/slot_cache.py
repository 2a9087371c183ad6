"""What slots have left in the cache: read for files, put back, erased. In the engine's thread.

A slot holds nothing while it is idle; its last sequence's pages are in the prefix tree like all
others. They are found by that sequence's tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.forward.cached_bytes import CachedBytes, PagesBeside
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.forward.slot_file import DraftFormat, SlotContent
from gguf_serve.engine.options import PROJECTOR, ModelInfo
from gguf_serve.engine.scheduling.page_cache import PagedTokens
from gguf_serve.engine.scheduling.scheduler import Scheduler


class SlotCache:
    """The last tokens of each slot, and what of them is cached."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        info: ModelInfo,
        beside: PagesBeside | None = None,
    ) -> None:
        """``beside``: of a model that guesses."""
        self._scheduler, self._runner, self._info = scheduler, runner, info
        self._bytes = CachedBytes(scheduler, runner, beside)
        self._left: list[tuple[Sequence[int], Hashable]] = [((), None)] * len(scheduler.slots)

    @property
    def made_with(self) -> dict[str, Any]:
        """What a file and this engine must have in common."""
        return {
            "model": self._info.fingerprint,
            **self._info.settings,
            "cache types": list(self._info.cache_types),
            "page size": self._scheduler.cache.page_size,
            "page bytes": self.page_bytes,
            "state bytes": self._runner.state_bytes,
        }

    @property
    def page_bytes(self) -> int:
        return self._bytes.page_bytes

    @property
    def draft(self) -> DraftFormat | None:
        """Of the model that guesses."""
        beside = self._bytes.beside
        return None if beside is None else DraftFormat(beside.made_with, beside.page_bytes)

    def note(self, slot: int, tokens: Sequence[int], salt: Hashable) -> None:
        """From now on the slot's content is that of these tokens, which may grow."""
        self._left[slot] = tokens, salt

    def content(self, slot: int) -> SlotContent:
        """A copy of what is cached of the slot's tokens: the longest cached beginning, of models
        with a state up to its last checkpoint. RequestError if no file can have it."""
        tokens, salt = self._left[slot]
        if salt is not None:
            raise RequestError(
                f"slot {slot} has adapters, a cache_salt or an encoder's prompt, "
                "which no file names"
            )
        table, n = self._scheduler.cache.find_pages(tokens)
        state = np.empty(0, np.uint8)
        if self._runner.state_bytes:
            n, state = self._bytes.read_state(tokens, None, n)
        n_pages = -(-n // self._scheduler.cache.page_size)
        pages = [self._bytes.read_page(page) for page in table[:n_pages]]
        beside = self._bytes.beside
        drafts = [] if beside is None else [beside.read_page(page) for page in table[:n_pages]]
        return SlotContent(tokens[:n], pages, state, drafts)

    def put(self, slot: int, content: SlotContent, name: str) -> None:
        """Bring the content of a file of that name into the cache, as the slot's. RequestError if
        it cannot be."""
        self._insert(content, name)
        self._left[slot] = content.tokens, None

    def erase(self, slot: int) -> int:
        """Forget the slot's tokens and free what nobody else uses of them; returns how many."""
        tokens, salt = self._left[slot]
        n_cached = self._scheduler.cache.forget(tokens, salt) if tokens else 0
        self._left[slot] = (), None
        return n_cached

    def _insert(self, content: SlotContent, name: str) -> None:
        cache, n = self._scheduler.cache, len(content.tokens)
        n_vocab = self._info.n_vocab
        if PROJECTOR not in self._info.settings and min(content.tokens, default=0) < 0:
            raise RequestError(f"{name} has images or sounds, and this engine has no projector")
        stray = next((token for token in content.tokens if token >= n_vocab), None)
        if stray is not None:
            raise RequestError(f"{name}: token {stray} is not in the vocabulary of {n_vocab}")
        if len(content.pages) != (n_pages := -(-n // cache.page_size)):
            raise RequestError(
                f"{name}: {len(content.pages)} pages for {n} tokens, expected {n_pages}"
            )
        if content.state.nbytes != (n_bytes := self._bytes.state_bytes_at(n)):
            raise RequestError(
                f"{name}: a state of {content.state.nbytes} bytes, expected {n_bytes}"
            )
        if n == 0:
            return
        seq = PagedTokens(list(content.tokens), share=False)
        if cache.acquire(seq) is None:
            raise RequestError(f"{name}: no room for {n} tokens in the KV cache")
        for page, data in zip(seq.table, content.pages, strict=True):
            self._bytes.write_page(page, data)
        if self._bytes.beside is not None:
            for page, data in zip(seq.table, content.drafts, strict=False):
                self._bytes.beside.write_page(page, data)
        seq.share = True
        cache.commit(seq, n)
        cache.release(seq)
        self._bytes.write_state(content.tokens, None, n, content.state)
