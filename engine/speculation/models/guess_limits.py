"""What all models that guess do alike: take the likeliest token if it will do, in steps that are
not too large."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import TypeVar

from msgspec import Struct

from gguf_serve.engine.forward.runner import RowLogits

T = TypeVar("T")


class GuessLimits(Struct, frozen=True):
    """Of a guess: ``n_vocab``, ``eog_ids``: the target's; ``n_ctx``: of a sequence; ``max_tokens``:
    of a step; ``most``, ``least``: its tokens; ``p_min``: the probability that each must have."""

    n_vocab: int
    eog_ids: Collection[int]
    n_ctx: int
    max_tokens: int
    most: int
    least: int = 0
    p_min: float = 0.0

    def choose(
        self, logits: RowLogits, known_as: Callable[[int], int] = lambda token: token
    ) -> tuple[int, float] | None:
        """The likeliest token and its probability; None where it is not to be guessed. Nothing is
        guessed that ends a text. ``known_as``: a token's id of the target's."""
        if logits.broken:
            return None
        found = logits.allowed(1)
        token = known_as(found.ids[0])
        chance = math.exp(min(found.logits[0] - found.log_sum_exp, 0.0))
        return (token, chance) if self.allow(token, chance) else None

    def allow(self, token: int, chance: float) -> bool:
        """Whether a token of this probability may be guessed."""
        return token < self.n_vocab and token not in self.eog_ids and chance >= self.p_min

    def kept(self, guess: list[int]) -> list[int]:
        """A guess if it is long enough, else none."""
        return guess if len(guess) >= self.least else []


def in_steps(items: Iterable[T], size: Callable[[T], int], most: int) -> Iterator[list[T]]:
    """One after the other, as many at once as have ``most`` tokens together."""
    group, total = list[T](), 0
    for item in items:
        n = size(item)
        if group and total + n > most:
            yield group
            group, total = [], 0
        group.append(item)
        total += n
    if group:
        yield group
