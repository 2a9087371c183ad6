"""How a diffusion model's masks become tokens: all are guessed in every forward, and those stay
that come first in an order, until none is left."""

from __future__ import annotations

import math
from collections.abc import Callable
from heapq import nlargest

import numpy as np
from msgspec import Struct

from gguf_serve.engine.forward.runner import RowLogits
from gguf_serve.engine.request import Denoising


class Guess(Struct, frozen=True):
    """A token for the mask at a position; those of the greatest ``rank`` stay."""

    position: int
    token: int
    rank: float


class Denoiser:
    """The guesses of one request. ``uniform``: random numbers from 0 to 1."""

    def __init__(self, how: Denoising, uniform: Callable[[], float]) -> None:
        self.how, self._uniform = how, uniform
        self._n_left = how.steps
        self._guesses: list[Guess] = []

    @property
    def n_steps(self) -> int:
        """Forwards whose guesses have been taken."""
        return self.how.steps - self._n_left

    @property
    def k(self) -> int:
        """How many of the likeliest tokens the order looks at."""
        return 2 if self.how.order == "margin" else 1

    def row(self, position: int) -> int:
        """The position whose logits say what the mask at ``position`` becomes."""
        return position - 1 if self.how.shifted else position

    def guess(self, row: int, token: int, logits: RowLogits) -> None:
        """Note what the logits of a row have been sampled to."""
        position = row + 1 if self.how.shifted else row
        self._guesses.append(Guess(position, token, self._rank(token, logits)))

    def take(self, n_masks: int) -> dict[int, int]:
        """The tokens that stay, by position, of the guesses since the last call: a share of all
        ``n_masks`` with which the steps are enough."""
        n = -(-n_masks // max(self._n_left, 1))
        self._n_left = max(self._n_left - 1, 1)
        best = nlargest(n, self._guesses, key=lambda guess: (guess.rank, -guess.position))
        self._guesses.clear()
        return {guess.position: guess.token for guess in best}

    def _rank(self, token: int, logits: RowLogits) -> float:
        match self.how.order:
            case "random":
                return self._uniform()
            case "margin":
                first, second = logits.best(2).logits
                return math.exp(first - logits.log_sum_exp) - math.exp(second - logits.log_sum_exp)
            case "entropy":
                logs = logits.row().astype(np.float64) - logits.log_sum_exp
                return float((np.exp(logs) * logs).sum())
        found = logits.best(self.k)
        own = found.logits[0] if found.ids[0] == token else float(logits.row()[token])
        return own - logits.log_sum_exp
