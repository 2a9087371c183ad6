"""Samplers that learn from the tokens they have drawn: Mirostat and adaptive-p.

Each is a step of the chain, and a Learner.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from gguf_serve.engine.sampling.candidates import Filter, Floats, Pool, Ranking, Tokens


class Learner(Protocol):
    """What takes note of every drawn token, and the numbers in which it does."""

    @property
    def learned(self) -> tuple[float, ...]: ...

    def observe(self, token: int, prob: float) -> None:
        """Learn from the drawn token and its probability among those kept."""
        ...

    def resume(self, learned: tuple[float, ...]) -> None:
        """Go on where ``learned`` was what it is now."""
        ...


class Mirostat:
    """Truncates so that the surprise of the drawn tokens stays near tau bits.

    Version 1 estimates Zipf's exponent from the likeliest 100 tokens and keeps the k
    likeliest; version 2 drops tokens of surprise over mu. (Basu et al., arXiv:2007.14966)
    """

    _N_ESTIMATE = 100

    def __init__(self, version: int, tau: float, eta: float, n_vocab: int) -> None:
        self.cut: Filter = self._cut_1 if version == 1 else self._cut_2
        self._tau = tau
        self._eta = eta
        self._n_vocab = n_vocab
        self.mu = 2.0 * tau  # bits; the feedback's state

    @property
    def learned(self) -> tuple[float, ...]:
        return (self.mu,)

    def resume(self, learned: tuple[float, ...]) -> None:
        (self.mu,) = learned

    def observe(self, token: int, prob: float) -> None:
        self.mu -= self._eta * (-math.log2(max(prob, math.ulp(0.0))) - self._tau)

    def _cut_1(self, tokens: Tokens) -> Ranking:
        best = np.array(tokens.best(self._N_ESTIMATE).logits)
        return tokens.best(self._k(best[best > -math.inf]))

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

    def _cut_2(self, tokens: Tokens) -> Tokens:
        # surprise <= mu, as a bound on the logit
        log_total = math.log(float(np.sum(tokens.weights())))
        return tokens.at_least(tokens.max() + log_total - self.mu * math.log(2.0), 1)


class AdaptiveP:
    """Makes tokens likely whose probability is near a target, and on average meets it nearly.

    Where drawn tokens were likelier than the target, the next are to be less likely by as much:
    the average forgets by ``decay`` for each token. Logits become a peak over the target that falls
    with the square of the distance and, far away, with the distance. (llama.cpp, PR 17927)
    """

    _PEAK, _SHARPNESS, _WIDTH = 5.0, 10.0, 0.3

    def __init__(self, target: float, decay: float) -> None:
        self._target, self._decay = min(target, 1.0), decay
        self._total = 1.0 / (1.0 - decay)  # as if the target had always been met
        self._sum = self._target * self._total
        self._before: tuple[NDArray[np.int32], Floats] | None = None  # ids, probabilities

    def __call__(self, tokens: Tokens) -> Pool:
        pool = tokens.pool()
        weights = pool.weights()
        probs = weights / weights.sum()
        self._before = pool.ids, probs
        target = min(max(2.0 * self._target - self._sum / self._total, 0.0), 1.0)
        distance = np.abs(probs - target) / self._WIDTH
        logits = self._PEAK - self._SHARPNESS * distance**2 / (1.0 + distance)
        return Pool(pool.ids, np.where(pool.logits == -math.inf, -math.inf, logits))

    @property
    def learned(self) -> tuple[float, ...]:
        return self._sum, self._total

    def resume(self, learned: tuple[float, ...]) -> None:
        self._sum, self._total = learned

    def observe(self, token: int, prob: float) -> None:
        """What counts is the probability that the token had before this step."""
        assert self._before is not None
        ids, probs = self._before
        self._sum = float(probs[ids == token][0]) + self._decay * self._sum
        self._total = 1.0 + self._decay * self._total
