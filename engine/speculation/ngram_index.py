"""Where in a growing list of tokens its n-grams are, in constant time for each token."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

MODULUS = 2**61 - 1
FACTOR = 6364136223846793005 % MODULUS


class RollingHash:
    """A number for the last ``n`` tokens of a list: polynomial, modulo a Mersenne prime
    (R. M. Karp and M. O. Rabin, 1987)."""

    def __init__(self, n: int) -> None:
        self.n, self.value, self.n_seen = n, 0, 0
        self._leaving = pow(FACTOR, n, MODULUS)

    def push(self, tokens: Sequence[int], i: int) -> None:
        """Take in token ``i``, the one after the last."""
        gone = tokens[i - self.n] + 1 if i >= self.n else 0
        self.value = (self.value * FACTOR + tokens[i] + 1 - gone * self._leaving) % MODULUS
        self.n_seen = i + 1


def hashed(ngram: Sequence[int]) -> int:
    """What RollingHash makes of these tokens, if there are n."""
    rolling = RollingHash(len(ngram))
    for i in range(len(ngram)):
        rolling.push(ngram, i)
    return rolling.value


class NGramIndex:
    """For each n-gram the places after it."""

    def __init__(self, n: int) -> None:
        self.n = n
        self._hash = RollingHash(n)
        self._places: dict[int, list[int]] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        """Take in what is new."""
        for i in range(self._hash.n_seen, len(tokens)):
            self._hash.push(tokens, i)
            if i + 1 >= self.n:
                self._places.setdefault(self._hash.value, []).append(i + 1)

    def places(self, tokens: Sequence[int], ngram: Sequence[int]) -> Iterator[int]:
        """The places in ``tokens``, which have been taken in, after an n-gram; the last one
        first."""
        wanted = list(ngram)
        found = self._places.get(hashed(wanted), ()) if len(wanted) == self.n else ()
        return (at for at in reversed(found) if list(tokens[at - self.n : at]) == wanted)

    def earlier(self, tokens: Sequence[int]) -> Iterator[int]:
        """The places after an earlier n-gram that the tokens end with now, likewise."""
        self.extend(tokens)
        end = len(tokens)
        return (at for at in self.places(tokens, tokens[max(end - self.n, 0) :]) if at < end)
