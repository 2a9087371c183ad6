"""What a step without prompts costs, by the number of its tokens: measured, or guessed."""

from __future__ import annotations

from dataclasses import dataclass

SLOPE = 0.17  # of a step's time for one token, what each further token is taken to cost
WEIGHT = 0.2  # of a new measurement
LARGEST = 2.0  # times what is known: the most that one measurement says
FORGOTTEN = 256  # steps after which a measurement is too old


@dataclass(slots=True)
class _Measured:
    seconds: float
    step: int  # in which it was last


class Prices:
    """The time of steps by their number of tokens, as it has been lately.

    A step's first of its size is not counted: it may wait for programs. What has not been
    measured lately lies between its neighbours, and above them all as steep as ``SLOPE``.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Measured] = {}
        self._sizes = set[int]()  # that there have been
        self._n_steps = 0

    def note(self, n_tokens: int, seconds: float) -> None:
        self._n_steps += 1
        known = self._known.get(n_tokens)
        if n_tokens not in self._sizes:
            self._sizes.add(n_tokens)
        elif known is None or self._n_steps - known.step > FORGOTTEN:
            self._known[n_tokens] = _Measured(seconds, self._n_steps)
        else:
            change = min(seconds, LARGEST * known.seconds) - known.seconds
            known.seconds, known.step = known.seconds + WEIGHT * change, self._n_steps

    def of(self, n_tokens: int) -> float:
        """Seconds; without any measurement, in units of a step of one token."""
        known = {
            n: each.seconds
            for n, each in self._known.items()
            if self._n_steps - each.step <= FORGOTTEN
        }
        below = max((n for n in known if n <= n_tokens), default=None)
        above = min((n for n in known if n >= n_tokens), default=None)
        if below is None and above is None:
            return _guessed(n_tokens)
        if below is None or above is None:
            n = below if above is None else above
            assert n is not None
            return known[n] * _guessed(n_tokens) / _guessed(n)
        if below == above:
            return known[below]
        share = (n_tokens - below) / (above - below)
        return known[below] + share * (known[above] - known[below])


def _guessed(n_tokens: int) -> float:
    return 1.0 + SLOPE * (n_tokens - 1)
