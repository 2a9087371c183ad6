"""Checkpoints: copies of what a slot keeps beside pages, found by the tokens before them.

Recurrent layers keep no past: a sequence that shares a prefix with an earlier one can begin
after it only where the earlier one's state was copied. Integers and lists only; the copies
themselves are kernels/recurrent/state.py's.
"""

from __future__ import annotations

import logging
from array import array
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from hashlib import blake2b
from typing import NamedTuple

log = logging.getLogger(__name__)


class StateCopy(NamedTuple):
    """What slot ``slot`` keeps at ``position`` (tokens computed), and the copy's number."""

    slot: int
    position: int
    copy: int


class Checkpoint(NamedTuple):
    position: int
    copy: int


class Checkpoints:
    """Which prefixes have a copy: ``n_copies`` at most, the least recently used one goes."""

    def __init__(
        self,
        n_copies: int,
        min_step: int,
        copy_bytes: int = 0,
        claim: Callable[[int, int], bool] = lambda copy, position: True,
    ) -> None:
        """``min_step``: long prompts get one every so many tokens; ``copy_bytes``: of a copy, at
        most; ``claim``: takes memory for a copy of a position, and says whether there is any.
        ValueError: none at all."""
        if n_copies < 1 or min_step < 1:
            raise ValueError(f"{n_copies} checkpoints every {min_step} tokens")
        self.min_step, self._copy_bytes, self._claim = min_step, copy_bytes, claim
        self._free = list(range(n_copies - 1, -1, -1))
        self._known: OrderedDict[Hashable, Checkpoint] = OrderedDict()  # oldest use first

    def __len__(self) -> int:
        return len(self._known)

    @property
    def n_bytes(self) -> int:
        """The bytes of all copies, at most."""
        return len(self) * self._copy_bytes

    @property
    def most_bytes(self) -> int:
        """Of as many copies as there may be."""
        return (len(self._known) + len(self._free)) * self._copy_bytes

    def find(
        self, tokens: Sequence[int], salt: Hashable, most: int, multiple: int = 1
    ) -> Checkpoint | None:
        """The longest prefix of at most ``most`` tokens, a multiple of so many, that has a copy."""
        found = None
        known = {c.position for c in self._known.values() if c.position <= most}
        positions = sorted(position for position in known if position % multiple == 0)
        for key in _keys(tokens, salt, positions):
            found = key if key in self._known else found
        if found is None:
            return None
        self._known.move_to_end(found)
        return self._known[found]

    def add(self, tokens: Sequence[int], salt: Hashable, position: int) -> int | None:
        """The number of the copy to make of the state after so many tokens; None: there is one,
        or no memory for one more."""
        key = next(_keys(tokens, salt, [position]))
        if key in self._known:
            self._known.move_to_end(key)
            return None
        if not self._free:
            self._free.append(self._known.popitem(last=False)[1].copy)
        made = Checkpoint(position, self._free.pop())
        if not self._claim(made.copy, position):
            self._free.append(made.copy)
            log.warning("no memory for a checkpoint of %d MiB", self._copy_bytes >> 20)
            return None
        self._known[key] = made
        return made.copy

    def forget(self, tokens: Sequence[int], salt: Hashable, start: int) -> None:
        """Give up the copies of these tokens' prefixes that are longer than ``start``."""
        positions = {c.position for c in self._known.values()}
        between = sorted(n for n in positions if start < n <= len(tokens))
        for key in [key for key in _keys(tokens, salt, between) if key in self._known]:
            self._free.append(self._known.pop(key).copy)

    def clear(self) -> None:
        """Give up all copies."""
        self._free += [known.copy for known in self._known.values()]
        self._known.clear()


def _keys(tokens: Sequence[int], salt: Hashable, positions: Iterable[int]) -> Iterator[Hashable]:
    """What stands for the first so many tokens, for ascending positions."""
    digest, begin = blake2b(digest_size=16), 0
    for end in positions:
        digest.update(array("q", tokens[begin:end]).tobytes())
        begin = end
        yield salt, digest.digest()
