"""What a text goes on with where its grammar leaves little choice.

A schema forces the names of an object's members, but not the white space, quotes and colons around
them: JSON allows them in many ways, and tokenizers join them in more. A text mostly writes them as
it has before. So after a forced token, or where few tokens are allowed, what came there last is
expected again, and after that what the grammar then forces.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher
from msgspec import Struct

Kind = Literal["forced", "closed", "free"]
CLOSED = 0.25  # of a mask's words, those that allow any token, at most
FORCED = -1  # stands for every token that had no choice
LONGEST = 2  # tokens of a context
MOST = 16  # tokens that are foreseen


def kind_of(mask: npt.NDArray[np.int32]) -> Kind:
    """Whether it allows one token, few, or many."""
    words = mask[mask != 0].view(np.uint32)
    if len(words) == 1 and int(words[0]).bit_count() == 1:
        return "forced"
    return "closed" if len(words) <= CLOSED * len(mask) else "free"


class _Habit(Struct):
    """A token, and how often in turn it has come; once is enough, unless another came before."""

    token: int
    n: int = 1

    def note(self, token: int) -> None:
        self.n = self.n + 1 if token == self.token else 0
        self.token = token


class Habits:
    """Of one text. What is told to ``note`` must be known before ``foresee`` runs in its thread."""

    def __init__(self) -> None:
        self._found: dict[tuple[int, ...], _Habit] = {}
        self._last: tuple[int, ...] = ()

    def note(self, token: int, kind: Kind) -> None:
        """A token has come, where so many were allowed."""
        if kind == "closed":
            for context in _contexts(self._last):
                habit = self._found.get(context)
                if habit is None:
                    self._found[context] = _Habit(token)
                else:
                    habit.note(token)
        self._last = _with(self._last, FORCED if kind == "forced" else token)

    def foresee(self, matcher: LLMatcher, kind: Kind) -> list[int]:
        """The tokens that ``matcher``, which allows tokens of this kind next, is likely to be told;
        those without a choice as the tokenizer would write their text."""
        found, last = list[int](), self._last
        if kind == "free" or (kind == "closed" and self.after_last is None):
            return found
        ahead = matcher.deep_copy()
        while len(found) < MOST:
            tokens = ahead.compute_ff_tokens()
            is_forced = bool(tokens)
            if not is_forced and (token := self._after(last)) is not None:
                tokens = [token]
            if not tokens or ahead.try_consume_tokens(tokens) < len(tokens):
                break
            found += tokens
            last = _with(last, FORCED if is_forced else tokens[-1])
        return found

    @property
    def after_last(self) -> int | None:
        """What is expected next, if few tokens are allowed; None: nothing."""
        return self._after(self._last)

    def _after(self, last: tuple[int, ...]) -> int | None:
        """What comes after these tokens, by the longest of their ends that is known."""
        habit = next((self._found[c] for c in _contexts(last) if c in self._found), None)
        return habit.token if habit is not None and habit.n else None


def _contexts(last: tuple[int, ...]) -> list[tuple[int, ...]]:
    return [last[-n:] for n in range(len(last), 0, -1)]


def _with(last: tuple[int, ...], token: int) -> tuple[int, ...]:
    """A context with one more token; several forced ones are as one."""
    return last if last[-1:] == (token,) == (FORCED,) else (*last, token)[-LONGEST:]
