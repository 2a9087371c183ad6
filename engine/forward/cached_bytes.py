"""The bytes of what is cached, of pages and of checkpoints: read, and put back. In the engine's
thread, between two steps."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.scheduling.page_cache import PageCopy
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.kernels.attention.kv import KVPages

Bytes = npt.NDArray[np.uint8]


class PagesBeside(Protocol):
    """What a model that guesses keeps in pages of the same numbers."""

    @property
    def made_with(self) -> Mapping[str, Any]:
        """All that its bytes depend on, beside what those of its target do; JSON."""
        ...

    @property
    def page_bytes(self) -> int: ...

    def copy(self, copies: Sequence[PageCopy]) -> None:
        """Pages are copied, before the plan that says so is computed."""
        ...

    def is_whole(self, page: int) -> bool:
        """Whether all rows of a page are computed."""
        ...

    def read_page(self, page: int) -> Bytes:
        """A page, and how much of it is computed."""
        ...

    def write_page(self, page: int, data: Bytes) -> None:
        """What ``read_page`` gave, in a page with the same tokens; ValueError for what it cannot
        have given."""
        ...


class PageBytes:
    """Of the pages of a number that models have, wherever their layers are."""

    def __init__(self, models: Sequence[Runner]) -> None:
        self._models = models

    @property
    def n_bytes(self) -> int:
        return sum(pages.page_bytes for model in self._models for pages in model.pages)

    def read(self, page: int, into: Bytes) -> None:
        """K and V, layer by layer."""
        self._each_layer(lambda pages, layer, at: pages.read_page(layer, page, into[at:]))

    def write(self, page: int, data: Bytes) -> None:
        self._each_layer(lambda pages, layer, at: pages.write_page(layer, page, data[at:]))

    def _each_layer(self, transfer: Callable[[KVPages, int, int], int]) -> None:
        """Have the bytes of all layers carried, each from where those before it end."""
        at = 0
        for model in self._models:
            for layer in range(len(model.pages[0].layers)):
                for pages in model.pages:
                    at += transfer(pages, layer, at)
            for pages in model.pages:
                pages.finish()


class CachedBytes:
    """Of a scheduler's cache and checkpoints, on a runner's devices."""

    def __init__(
        self, scheduler: Scheduler, runner: Runner, beside: PagesBeside | None = None
    ) -> None:
        self._scheduler, self._runner, self.beside = scheduler, runner, beside
        self._pages = PageBytes([runner])

    @property
    def page_bytes(self) -> int:
        return self._pages.n_bytes

    @property
    def beside_bytes(self) -> int:
        """Of a page of the model that guesses; 0: there is none."""
        return 0 if self.beside is None else self.beside.page_bytes

    @property
    def most_bytes(self) -> int:
        """Of a page or a checkpoint, at most."""
        return max(self.page_bytes, self.beside_bytes, self._runner.state_bytes)

    def state_bytes_at(self, position: int) -> int:
        """Of what a slot keeps beside pages after so many tokens; 0: nothing."""
        return self._runner.states.copy_bytes_at(position) if position else 0

    def read_page(self, page: int) -> Bytes:
        """A page's K and V."""
        data = np.empty(self.page_bytes, np.uint8)
        self._pages.read(page, data)
        return data

    def write_page(self, page: int, data: Bytes) -> None:
        self._pages.write(page, data)

    def read_state(
        self, tokens: Sequence[int], salt: Hashable, most: int, multiple: int = 1
    ) -> tuple[int, Bytes]:
        """The last checkpoint within the first ``most`` tokens, at a multiple of so many: its
        position, 0 for none, and its bytes, to which nobody writes any more."""
        scheduler, states = self._scheduler, self._runner.states
        if scheduler.checkpoints is not None:
            self._runner.copy_states(scheduler.take_saves(), [])
            found = scheduler.checkpoints.find(tokens, salt, most, multiple)
            if found is not None:
                return found.position, states.read_copy(found.copy)
        return 0, np.empty(0, np.uint8)

    def write_state(
        self, tokens: Sequence[int], salt: Hashable, position: int, data: Bytes
    ) -> None:
        """Have a checkpoint of so many tokens, unless there is one; ValueError for other bytes
        than there are of it."""
        checkpoints = self._scheduler.checkpoints
        if checkpoints is None or not data.nbytes:
            return
        self._runner.copy_states(self._scheduler.take_saves(), [])  # they may be overwritten
        copy = checkpoints.add(tokens, salt, position)
        if copy is not None:
            self._runner.states.write_copy(copy, position, data)
