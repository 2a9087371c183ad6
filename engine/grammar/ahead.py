"""The masks after tokens that are guessed, computed while the device verifies them."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, wait
from functools import partial

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher
from msgspec import Struct

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.grammar.habits import Kind, kind_of
from gguf_serve.engine.grammar.mask_threads import MaskThreads

Ints = npt.NDArray[np.int32]


class Ahead:
    """The masks after the tokens of a guess. All but their computation belongs to the engine's
    thread."""

    def __init__(self) -> None:
        self.phase = ""  # of the guide when it began
        self._masks: list[Ints] = []  # after 1, 2, ... tokens
        self._kinds: list[Kind] = []  # of these, as far as they are known
        self._work: Future[None] | None = None

    def begin(
        self, threads: MaskThreads, matcher: LLMatcher, tokens: Sequence[int], n_words: int
    ) -> None:
        """Compute the masks after these tokens in another thread, which has a matcher of its own:
        whatever happens to that is not the request's."""
        self._masks = [np.full(n_words, -1, np.int32) for _ in tokens]
        self._kinds = []
        walk = partial(_walk, matcher.deep_copy(), tuple(tokens), self._masks, self._kinds)
        self._work = threads.run(walk, is_slow=False)

    def kind(self, n: int) -> Kind:
        """Of the mask after the first ``n`` tokens, n > 0."""
        return self._kinds[n - 1] if n <= len(self._kinds) else "free"

    def after(self, n: int) -> MaskAhead:
        assert self._work is not None
        return MaskAhead(self._work, self._masks[n - 1])


def _walk(
    matcher: LLMatcher, tokens: Sequence[int], masks: Sequence[Ints], kinds: list[Kind]
) -> None:
    """A token that the grammar does not allow ends it: what would come after it does not matter,
    since it is not chosen."""
    for token, mask in zip(tokens, masks, strict=True):
        if not matcher.try_consume_tokens([token]):
            return
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, mask.nbytes)
        if matcher.is_error():
            raise RequestError(matcher.get_error())
        kinds.append(kind_of(mask))


class MaskAhead(Struct, frozen=True):
    """A row's mask (engine/forward/batch.py, TokenMask)."""

    _work: Future[None]
    _mask: Ints

    @property
    def is_ready(self) -> bool:
        return self._work.done()

    def begin(self, when_done: Callable[[], None] | None = None) -> None:
        if when_done is not None:
            self._work.add_done_callback(lambda _: when_done())

    def fill(self, words: Ints, until: float | None = None) -> bool:
        wait([self._work], None if until is None else max(until - time.perf_counter(), 0.0))
        if not self._work.done() or self._work.exception() is not None:
            return False
        words[:] = self._mask
        return True
