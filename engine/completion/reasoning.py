"""A limit on thinking: counts the tokens between a model's tags, and closes them by force.

Tags are looked for in the bytes of the tokens, since a tag may be one token or several. The
forced tokens go through the sampler's and the grammar's history like any others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from gguf_serve.engine.request import ReasoningBudget


class BudgetWatch:
    """Follows one completion; ``next`` is the token that must come now, None for any."""

    def __init__(self, budget: ReasoningBudget, piece: Callable[[int], bytes]) -> None:
        self._piece = piece
        self._start = budget.start.encode()
        self._ends = tuple(end.encode() for end in budget.ends)
        self._forced = budget.forced
        self._left = budget.n_tokens
        self._tail = b""  # of the text, enough to find a tag in
        self._longest = max(len(tag) for tag in (self._start, *self._ends))
        self._queue: deque[int] = deque()
        self.is_open = False
        if budget.is_open:
            self._open()

    @property
    def next(self) -> int | None:
        return self._queue[0] if self._queue else None

    def accept(self, token: int) -> None:
        """Note the token that was taken, forced or not."""
        if self._queue:
            self._queue.popleft()
            self._tail = b""
            return
        self._tail = (self._tail + self._piece(token))[-self._longest - 64 :]
        if not self.is_open:
            if self._start in self._tail:
                self._open()
        elif any(end in self._tail for end in self._ends):
            self.is_open, self._tail = False, b""
        else:
            self._left -= self._left > 0
            self._force_if_used_up()

    @property
    def n_forced(self) -> int:
        """How many tokens must come now."""
        return len(self._queue)

    def resume(self, n_forced: int) -> None:
        """Go on where so many of the forced tokens were still to come; the others are accepted."""
        self._queue = deque(self._forced[len(self._forced) - n_forced :])
        if n_forced:
            self.is_open, self._tail = False, b""

    def end(self) -> bool:
        """Close the reasoning as soon as a character is whole; False if it is not open."""
        if self.is_open:
            self._left = 0
            self._force_if_used_up()
        return self.is_open or bool(self._queue)

    def _open(self) -> None:
        self.is_open, self._tail = True, b""
        self._force_if_used_up()

    def _force_if_used_up(self) -> None:
        if self._left == 0 and ends_whole(self._tail):
            self.is_open, self._tail = False, b""
            self._queue.extend(self._forced)


def ends_whole(text: bytes) -> bool:
    """Whether the text does not end inside a character of several bytes."""
    for back, byte in enumerate(reversed(text[-4:]), start=1):
        if byte < 0x80:
            return True
        if byte >= 0xC0:
            return back >= (2 if byte < 0xE0 else 3 if byte < 0xF0 else 4)
    return True
