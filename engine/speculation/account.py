"""The time that guesses by a model may cost: never more than they have gained, and a little."""

from __future__ import annotations

SHARE = 0.015  # of the time of steps without such a guess, what may be spent on trying one
FIRST = 0.5  # seconds that may be spent before anything is known
MOST = 4.0  # seconds that are kept for later


class Account:
    """Seconds. What a guess costs at most is there before it is made; so with all of them an
    answer takes no more than a share of its time longer than without."""

    def __init__(self) -> None:
        self.seconds = FIRST

    def earn(self, seconds: float) -> None:
        """A step without a model's guess has taken so long."""
        self._add(SHARE * seconds)

    def settle(self, gained: float) -> None:
        """A step with one has taken so much less than its tokens would have one by one; < 0:
        more."""
        self._add(gained)

    def has(self, seconds: float) -> bool:
        return self.seconds >= seconds

    def _add(self, seconds: float) -> None:
        self.seconds = min(self.seconds + seconds, MOST)
