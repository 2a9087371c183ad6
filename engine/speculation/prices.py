"""What a step without prompts costs, by the number of its tokens: measured, or guessed."""

from __future__ import annotations

from bisect import bisect_left

from msgspec import Struct

SLOPE = 0.3  # of a step's time for one token, what each further token is taken to cost at first
STEEPEST = 1.0  # what it is taken to cost at most
WEIGHT = 0.2  # of a new measurement
LARGEST = 2.0  # times what is known: the most that one measurement says
FORGOTTEN = 256  # steps after which a measurement is too old


class _Measured(Struct):
    seconds: float
    step: int  # in which it was last


class Prices:
    """The time of steps by their number of tokens, as it has been lately.

    A step's first of its size is not counted: it may wait for programs. What has not been
    measured lately lies between its neighbours; outside of them all, further tokens cost as much
    as they have been seen to.
    """

    def __init__(self) -> None:
        self._known: dict[int, _Measured] = {}
        self._sizes = set[int]()  # that there have been
        self._n_steps = 0
        self._slope = SLOPE
        self._points: list[tuple[int, float]] | None = None  # what is known; None: out of date

    def note(self, n_tokens: int, seconds: float) -> None:
        self._n_steps += 1
        self._points = None
        known = self._known.get(n_tokens)
        if n_tokens not in self._sizes:
            self._sizes.add(n_tokens)
            return
        if known is None or self._n_steps - known.step > FORGOTTEN:
            self._known[n_tokens] = known = _Measured(seconds, self._n_steps)
        else:
            change = min(seconds, LARGEST * known.seconds) - known.seconds
            known.seconds, known.step = known.seconds + WEIGHT * change, self._n_steps
        self._learn(n_tokens, known.seconds)

    def _learn(self, n_tokens: int, seconds: float) -> None:
        """How much a further token costs, by the smallest step that is known."""
        fewest, least = self._measured()[0]
        if n_tokens == fewest:
            return
        rise = seconds - least
        base = least * (n_tokens - 1) - seconds * (fewest - 1)  # what the rise is times the slope
        slope = rise / base if base > 0.0 else STEEPEST
        self._slope += WEIGHT * (min(max(slope, 0.0), STEEPEST) - self._slope)

    def _measured(self) -> list[tuple[int, float]]:
        """Sizes and seconds that are not too old, by size."""
        if self._points is None:
            self._points = sorted(
                (n, each.seconds)
                for n, each in self._known.items()
                if self._n_steps - each.step <= FORGOTTEN
            )
        return self._points

    @property
    def is_measured(self) -> bool:
        """Whether ``of`` is in seconds."""
        return bool(self._measured())

    def of(self, n_tokens: int) -> float:
        """Seconds; without any measurement, in units of a step of one token."""
        points = self._measured()
        if not points:
            return self._guessed(n_tokens)
        i = bisect_left(points, (n_tokens,))
        if i in (0, len(points)) and (i == len(points) or points[i][0] != n_tokens):
            n, seconds = points[min(i, len(points) - 1)]
            return seconds * self._guessed(n_tokens) / self._guessed(n)
        (n, seconds), (fewer, less) = points[i], points[max(i - 1, 0)]
        share = (n - n_tokens) / (n - fewer) if n > fewer else 0.0
        return seconds - share * (seconds - less)

    def _guessed(self, n_tokens: int) -> float:
        return 1.0 + self._slope * (n_tokens - 1)
