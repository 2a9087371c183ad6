"""The candidates of one token on the host, and the steps that narrow them.

A step is a function that changes a Pool in place. Formulas, defaults and corner cases are
those of llama.cpp's samplers (src/llama-sampler.cpp); a step is built only where it is not
a no-op. Nothing here knows of tokens' text or of requests.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from engine.errors import EngineError

Floats = NDArray[np.float64]
T = TypeVar("T")


class Pool:
    """Token ids with their logits, (n,) each.

    ``ordered``: by falling logit, ties by rising id. ``whole``: the vocabulary in its own
    order, so that an id is its index. A ruled-out token may stay with logit -inf, since
    llama.cpp counts such tokens in the entropy's range.
    """

    __slots__ = ("ids", "logits", "ordered", "whole")

    def __init__(
        self, ids: NDArray[np.int32], logits: Floats, *, ordered: bool, whole: bool
    ) -> None:
        self.ids = ids
        self.logits = logits
        self.ordered = ordered
        self.whole = whole

    def max(self) -> float:
        """The highest logit; EngineError where it is no number, so that none can be chosen."""
        highest = float(self.logits[0] if self.ordered else self.logits.max())
        if not -math.inf < highest < math.inf:
            raise EngineError(f"no token can be chosen: the highest logit is {highest}")
        return highest

    def weights(self) -> Floats:
        """The softmax without its division, the likeliest token being 1. (n,)"""
        return np.exp(self.logits - self.max())

    def take(self, chosen: NDArray[Any]) -> None:
        """Keep what a mask or an index array chooses."""
        self.ids = self.ids[chosen]
        self.logits = self.logits[chosen]
        self.whole = False

    def sort(self) -> None:
        if not self.ordered:
            self.take(np.lexsort((self.ids, -self.logits)))
            self.ordered = True

    def cut(self, n: int) -> None:
        """Keep the first n of a sorted pool."""
        if n < self.ids.size:
            self.ids = self.ids[:n]
            self.logits = self.logits[:n]
            self.whole = False

    def top(self, k: int) -> None:
        """Keep the k likeliest, sorted."""
        if not self.ordered and k < self.ids.size:
            least = np.partition(self.logits, -k)[-k]
            self.take(self.logits >= least)  # ties at the border are settled by the sort
        self.sort()
        self.cut(k)

    def find(self, values: Mapping[int, T]) -> tuple[list[int], list[T]]:
        """Where the mapping's tokens are in the pool, and their values; absent ones left out."""
        if self.whole:
            return list(values), list(values.values())
        at = [i for i, token in enumerate(self.ids.tolist()) if token in values]
        return at, [values[token] for token in self.ids[at].tolist()]

    def add(self, values: Mapping[int, float]) -> None:
        """Add to the logits of the mapping's tokens."""
        at, amounts = self.find(values)
        if at:
            self.logits[at] += amounts
            self.ordered = False


Step = Callable[[Pool], None]


def top_k(k: int) -> Step:
    return lambda pool: pool.top(k)


def top_p(p: float, min_keep: int) -> Step:
    """The smallest set of likeliest tokens whose probabilities sum to p or more."""
    p = max(p, 0.0)

    def preselect(pool: Pool) -> float:
        """Drop what cannot be in the set, to have less to sort; the weight of all."""
        weights = pool.weights()
        total = float(weights.sum())
        # Those below the mean share of the tail weigh less than the tail together: the set
        # is full before the first of them.
        likely = weights >= (1.0 - p) * total / weights.size
        if np.count_nonzero(likely) >= min_keep:
            pool.take(likely)
        pool.sort()
        return total

    def step(pool: Pool) -> None:
        total = None if pool.ordered else preselect(pool)
        masses = pool.weights().cumsum()
        n = int(masses.searchsorted(p * (masses[-1] if total is None else total))) + 1
        pool.cut(max(n, min_keep))

    return step


def min_p(p: float, min_keep: int) -> Step:
    """Tokens at least p times as probable as the likeliest."""
    log_p = math.log(p)
    at_least = max(min_keep, 1)

    def step(pool: Pool) -> None:
        likely = pool.logits >= pool.max() + log_p
        n = int(np.count_nonzero(likely))
        if pool.ordered or n < at_least:
            pool.sort()
            pool.cut(max(n, at_least))
        else:
            pool.take(likely)

    return step


def typical_p(p: float, min_keep: int) -> Step:
    """Tokens whose surprise is nearest to the entropy, until their mass exceeds p."""

    def step(pool: Pool) -> None:
        weights = pool.weights()
        total = float(weights.sum())
        probs = weights / total
        surprise = math.log(total) + pool.max() - pool.logits  # inf where ruled out
        possible = probs > 0.0
        entropy = float(probs[possible] @ surprise[possible])
        order = np.abs(surprise - entropy).argsort(kind="stable")
        n = int(probs[order].cumsum().searchsorted(p, "right")) + 1
        pool.take(order[: max(n, min_keep)])
        pool.ordered = False

    return step


def top_n_sigma(n: float) -> Step:
    """Tokens whose logit is within n standard deviations of the highest."""

    def step(pool: Pool) -> None:
        logits = pool.logits
        finite = logits[logits > -math.inf]
        if logits.size > 1 and finite.size:
            least = pool.max() - n * float(finite.std())
            pool.logits = np.where(logits < least, -math.inf, logits)

    return step


def xtc(probability: float, threshold: float, min_keep: int, uniform: Callable[[], float]) -> Step:
    """Now and then, drop all tokens of probability >= threshold but the least of them."""

    def step(pool: Pool) -> None:
        # Drawn whatever the pool's size, so that the generator's position depends only on
        # the number of tokens.
        if uniform() > probability or pool.ids.size < 2:
            return
        pool.sort()
        weights = pool.weights()
        n_dropped = int(np.count_nonzero(weights >= threshold * weights.sum())) - 1
        if n_dropped > 0 and pool.ids.size - n_dropped >= min_keep:
            pool.take(np.arange(n_dropped, pool.ids.size))

    return step


def temperature(t: float) -> Step:
    """Divide by t; t <= 0 leaves only the likeliest token."""
    if t <= 0.0:
        return top_k(1)

    def step(pool: Pool) -> None:
        pool.logits = pool.logits / t

    return step


def dynamic_temperature(t: float, spread: float, exponent: float) -> Step:
    """A temperature of t - spread to t + spread, growing with the normalized entropy."""
    low, high = max(0.0, t - spread), t + spread

    def step(pool: Pool) -> None:
        if pool.ids.size < 2:
            return
        weights = pool.weights()
        probs = weights / weights.sum()
        probs = probs[probs > 0.0]
        entropy = -float(probs @ np.log(probs)) / math.log(pool.ids.size)
        temperature(low + (high - low) * max(entropy, 0.0) ** exponent)(pool)

    return step


class Mirostat:
    """Truncates so that the surprise of the drawn tokens stays near tau bits.

    Version 1 estimates Zipf's exponent from the likeliest 100 tokens and keeps the k
    likeliest; version 2 drops tokens of surprise over mu. (Basu et al., arXiv:2007.14966)
    """

    _N_ESTIMATE = 100

    def __init__(self, version: int, tau: float, eta: float, n_vocab: int) -> None:
        self.cut: Step = self._cut_1 if version == 1 else self._cut_2
        self._tau = tau
        self._eta = eta
        self._n_vocab = n_vocab
        self.mu = 2.0 * tau  # bits; the feedback's state

    def observe(self, prob: float) -> None:
        """Take note of the drawn token's probability among those kept."""
        self.mu -= self._eta * (-math.log2(prob) - self._tau)

    def _cut_1(self, pool: Pool) -> None:
        n = min(self._N_ESTIMATE, pool.logits.size)
        best = np.sort(np.partition(pool.logits, -n)[-n:])[::-1]
        pool.top(self._k(best[best > -math.inf]))

    def _k(self, logits: Floats) -> int:
        """How many tokens to keep, from the highest logits in falling order."""
        if logits.size < 2:
            return 1
        ranks = np.arange(1, logits.size)
        t = np.log((ranks + 1) / ranks)
        exponent = float(t @ -np.diff(logits)) / float(t @ t)
        if exponent <= 0.0:  # all alike
            return self._n_vocab
        log_n = math.log(self._n_vocab)
        epsilon = exponent - 1.0
        # epsilon / (1 - n_vocab ** -epsilon), by its limit where that is 0 / 0
        shape = epsilon / -math.expm1(-epsilon * log_n) if abs(epsilon) > 1e-9 else 1 / log_n
        log_k = (math.log(shape) + self.mu * math.log(2.0)) / exponent
        return max(int(math.exp(log_k)), 1) if log_k < log_n else self._n_vocab

    def _cut_2(self, pool: Pool) -> None:
        # surprise <= mu, as a bound on the logit
        weights = pool.weights()
        least = pool.max() + math.log(float(weights.sum())) - self.mu * math.log(2.0)
        likely = pool.logits >= least
        if not likely.any():
            pool.top(1)
            return
        pool.take(likely)
        pool.sort()
