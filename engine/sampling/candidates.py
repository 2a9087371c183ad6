"""The candidates of one token on the host, and the steps that narrow them.

A step is a function of candidates that returns what is left of them; the candidates themselves
come in two forms, a Pool and a Ranking. Formulas, defaults and corner cases are those of
llama.cpp's samplers (src/llama-sampler.cpp); a step is built only where it is not a no-op.
Nothing here knows of tokens' text or of requests.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping
from itertools import accumulate
from operator import neg
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from gguf_serve.engine.errors import EngineError, RequestError

# Less is 0 in llama.cpp, whose temperatures are float32: the least normal one.
LEAST_TEMPERATURE = 2.0**-126
Floats = NDArray[np.float64]
T = TypeVar("T")


def finite(highest: float) -> float:
    """The highest logit. RequestError where all tokens are ruled out, EngineError where it is no
    number."""
    if highest == -math.inf:
        raise RequestError(
            "no token can be chosen: the grammar and the logit biases together leave none"
        )
    if not highest < math.inf:
        raise EngineError(f"no token can be chosen: the highest logit is {highest}")
    return highest


class Ranking:
    """Tokens by falling logit, ties by rising id. Mostly they are few, and then Python's lists
    take a third of the time of arrays."""

    __slots__ = ("ids", "logits")

    def __init__(self, ids: list[int], logits: list[float]) -> None:
        self.ids = ids
        self.logits = logits

    def max(self) -> float:
        return finite(self.logits[0])

    def weights(self) -> list[float]:
        """The softmax without its division, the likeliest token being 1."""
        exp, highest = math.exp, self.max()
        return [exp(logit - highest) for logit in self.logits]

    def best(self, n: int) -> Ranking:
        """The n likeliest."""
        return self if n >= len(self.ids) else Ranking(self.ids[:n], self.logits[:n])

    def ranking(self) -> Ranking:
        return self

    def pool(self) -> Pool:
        return Pool(np.array(self.ids, np.int32), np.array(self.logits))

    def at_least(self, least: float, n: int) -> Ranking:
        """Those of this logit or more, but not fewer than n."""
        return self.best(max(bisect_right(self.logits, -least, key=neg), n))

    def divided(self, divisor: float) -> Ranking:
        return Ranking(self.ids, [logit / divisor for logit in self.logits])

    def changed(self, values: Mapping[int, T], change: Callable[[float, T], float]) -> Ranking:
        """With change(logit, value) for each token that has a value."""
        found = [token for token in self.ids if token in values]
        if not found:
            return self
        logits = dict(zip(self.ids, self.logits, strict=True))
        for token in found:
            logits[token] = change(logits[token], values[token])
        return ranked(logits)


def ranked(logits: Mapping[int, float]) -> Ranking:
    """A ranking of these tokens."""
    ids = sorted(logits)
    ids.sort(key=logits.__getitem__, reverse=True)  # keeps the order of those that tie
    return Ranking(ids, [logits[token] for token in ids])


class Pool:
    """Token ids with their logits as arrays, (n,) each, in any order.

    ``whole``: the vocabulary in its own order, so that an id is its index. A ruled-out token may
    stay with logit -inf, since llama.cpp counts such tokens in the entropy's range.
    """

    __slots__ = ("ids", "logits", "whole")

    def __init__(self, ids: NDArray[np.int32], logits: Floats, *, whole: bool = False) -> None:
        self.ids = ids
        self.logits = logits
        self.whole = whole

    def max(self) -> float:
        return finite(float(self.logits.max()))

    def weights(self) -> Floats:
        """As a Ranking's. (n,)"""
        return np.exp(self.logits - self.max())

    def take(self, chosen: NDArray[Any]) -> Pool:
        """What a mask or an index array chooses."""
        return Pool(self.ids[chosen], self.logits[chosen])

    def best(self, n: int) -> Ranking:
        """The n likeliest."""
        if n >= self.ids.size:
            return self.ranking()
        least = np.partition(self.logits, -n)[-n]
        return self.take(self.logits >= least).ranking().best(n)  # of ties the lower ids

    def ranking(self) -> Ranking:
        order = np.lexsort((self.ids, -self.logits))
        return Ranking(self.ids[order].tolist(), self.logits[order].tolist())

    def pool(self) -> Pool:
        return self

    def at_least(self, least: float, n: int) -> Pool | Ranking:
        likely = self.logits >= least
        return self.take(likely) if np.count_nonzero(likely) >= n else self.best(n)

    def divided(self, divisor: float) -> Pool:
        return Pool(self.ids, self.logits / divisor, whole=self.whole)

    def changed(self, values: Mapping[int, T], change: Callable[[float, T], float]) -> Pool:
        """The same pool, with change(logit, value) for each token that has a value."""
        at = list(values)
        if not self.whole:
            at = [i for i, token in enumerate(self.ids.tolist()) if token in values]
        if at:
            pairs = zip(self.logits[at].tolist(), self.ids[at].tolist(), strict=True)
            self.logits[at] = [change(logit, values[token]) for logit, token in pairs]
        return self


Tokens = Pool | Ranking
Filter = Callable[[Tokens], Tokens]


def cumulated(weights: Floats | list[float]) -> Floats | list[float]:
    return list(accumulate(weights)) if isinstance(weights, list) else weights.cumsum()


def top_k(k: int) -> Filter:
    return lambda tokens: tokens.best(k)


def top_p(p: float, min_keep: int) -> Filter:
    """The smallest set of likeliest tokens whose probabilities sum to p or more."""
    p = max(p, 0.0)

    def likely(pool: Pool) -> tuple[Ranking, float]:
        """Without what cannot be in the set, to have less to sort; the weight of all."""
        weights = pool.weights()
        total = float(weights.sum())
        # Those below the mean share of the tail weigh less than the tail together: the set
        # is full before the first of them.
        chosen = weights >= (1.0 - p) * total / weights.size
        enough = np.count_nonzero(chosen) >= min_keep
        return (pool.take(chosen) if enough else pool).ranking(), total

    def step(tokens: Tokens) -> Ranking:
        ranking, total = likely(tokens) if isinstance(tokens, Pool) else (tokens, None)
        masses = list(accumulate(ranking.weights()))
        n = bisect_left(masses, p * (masses[-1] if total is None else total)) + 1
        return ranking.best(max(n, min_keep))

    return step


def min_p(p: float, min_keep: int) -> Filter:
    """Tokens at least p times as probable as the likeliest."""
    log_p, n = math.log(p), max(min_keep, 1)
    return lambda tokens: tokens.at_least(tokens.max() + log_p, n)


def typical_p(p: float, min_keep: int) -> Filter:
    """Tokens whose surprise is nearest to the entropy, until their mass exceeds p."""

    def step(tokens: Tokens) -> Pool:
        pool = tokens.pool()
        weights = pool.weights()
        total = float(weights.sum())
        probs = weights / total
        surprise = math.log(total) + pool.max() - pool.logits  # inf where ruled out
        possible = probs > 0.0
        entropy = float(probs[possible] @ surprise[possible])
        order = np.abs(surprise - entropy).argsort(kind="stable")
        n = int(probs[order].cumsum().searchsorted(p, "right")) + 1
        return pool.take(order[: max(n, min_keep)])

    return step


def top_n_sigma(n: float) -> Filter:
    """Tokens whose logit is within n standard deviations of the highest."""

    def step(tokens: Tokens) -> Pool:
        pool = tokens.pool()
        logits = pool.logits
        possible = logits[logits > -math.inf]
        if logits.size < 2 or not possible.size:
            return pool
        least = pool.max() - n * float(possible.std())
        return Pool(pool.ids, np.where(logits < least, -math.inf, logits), whole=pool.whole)

    return step


def xtc(
    probability: float, threshold: float, min_keep: int, uniform: Callable[[], float]
) -> Filter:
    """Now and then, drop all tokens of probability >= threshold but the least of them."""

    def step(tokens: Tokens) -> Tokens:
        # Drawn whatever the number of tokens, so that the generator's position depends only on
        # how many were sampled.
        if uniform() > probability or len(tokens.ids) < 2:
            return tokens
        pool = tokens.pool()
        weights = pool.weights()
        chosen = weights >= threshold * weights.sum()
        n_dropped = int(np.count_nonzero(chosen)) - 1
        if n_dropped > 0 and pool.ids.size - n_dropped >= min_keep:
            at = np.flatnonzero(chosen)
            chosen[at[np.lexsort((-pool.ids[at], weights[at]))[0]]] = False  # of ties the last
            return pool.take(~chosen)
        return tokens

    return step


def temperature(t: float) -> Filter:
    """Divide by t; where that is 0 or negative only the likeliest token is left."""
    return top_k(1) if t < LEAST_TEMPERATURE else lambda tokens: tokens.divided(t)


def dynamic_temperature(t: float, spread: float, exponent: float) -> Filter:
    """A temperature of t - spread to t + spread, growing with the normalized entropy."""
    low, high = max(0.0, t - spread), t + spread

    def step(tokens: Tokens) -> Tokens:
        if len(tokens.ids) < 2:
            return tokens
        weights = np.array(tokens.weights())
        probs = weights / weights.sum()
        probs = probs[probs > 0.0]
        entropy = -float(probs @ np.log(probs)) / math.log(len(tokens.ids))
        share = min(max(entropy, 0.0), 1.0) ** exponent
        return temperature(low + (high - low) * share)(tokens)

    return step
