"""How many tokens each stream guesses, so that all of them get on as fast as they can."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from heapq import heappop, heappush
from typing import NamedTuple

LEAST_GAIN = 1.03  # what less than this promises is not worth a guess
SLOWEST = 0.98  # of its speed without guesses, what a stream keeps at least


class Offer(NamedTuple):
    """A stream's guess: so many tokens, each right with this chance if those before it are."""

    n_tokens: int
    chance: float


def lengths(offers: Sequence[Offer], most: int, price: Callable[[int], float]) -> list[int]:
    """Of each stream, one of which each offer is, the number of tokens to be verified.

    A step of k tokens takes ``price(k)``. A stream that verifies n tokens, each right with the
    chance a, gets 1 + a + ... + a^n tokens from it. Those likeliest to be right go in first, and of
    all their numbers up to ``most`` the one is chosen by which the streams together get the
    most tokens in a time, and none fewer than ``SLOWEST`` times what it had without.
    """
    n_streams = len(offers)
    heap: list[tuple[float, int]] = []  # -chance of a stream's next token to be right, the stream
    for i, offer in enumerate(offers):
        if offer.n_tokens and offer.chance > 0.0:
            heappush(heap, (-offer.chance, i))
    if not heap:
        return [0] * n_streams
    alone = price(n_streams)
    chosen, gains = [0] * n_streams, [1.0] * n_streams
    best, best_gain = chosen.copy(), LEAST_GAIN
    for n in range(1, most + 1):
        if not heap:
            break
        chance, i = heappop(heap)
        chosen[i] += 1
        gains[i] -= chance
        if chosen[i] < offers[i].n_tokens:
            heappush(heap, (chance * offers[i].chance, i))
        slower = price(n_streams + n) / alone
        gain = sum(gains) / n_streams / slower
        if gain > best_gain and min(gains) >= SLOWEST * slower:
            best, best_gain = chosen.copy(), gain
    return best
