"""What runs a model to guess: the interface of draft models and of heads of speculation.

Such guesses cost time whether they are right or not, so they are asked for only where that is
promised back (``account.py``), of all the requests of a step at once. They are verified like all
others: whatever a model drafter does changes no text.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.forward.cached_bytes import PagesBeside
from gguf_serve.engine.scheduling.sequence import Plan
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence

FIRST_TRUST, FIRST_WEIGHT = 0.7, 16.0  # of a model's tokens, and tokens that this counts for
FORGETS = 0.998  # of what is known, with each token
States = Callable[[range], npt.NDArray[np.float32]]


class Wish(NamedTuple):
    """So many tokens are wanted after those of a sequence, whose pages have room for them."""

    seq: RunningSequence
    n_tokens: int


class ModelDrafter(Protocol):
    """Lives in the engine's thread, which runs it between two steps of its target."""

    @property
    def kind(self) -> str:
        """Its name among the types of --spec-type."""
        ...

    @property
    def most(self) -> int:
        """Tokens of a guess at most."""
        ...

    @property
    def pages(self) -> PagesBeside | None:
        """Its own; None: it attends to its target's."""
        ...

    @property
    def wants_states(self) -> bool:
        """Whether ``follow`` needs the target's hidden states."""
        ...

    def follow(self, plan: Plan, states: States | None) -> None:
        """A plan's tokens have been computed by the target; none is sampled yet. ``states``: of
        some of its tokens in their order, see Runner.states_of."""
        ...

    def can_guess(self, seq: RunningSequence) -> bool:
        """Whether it knows how a sequence goes on: not where it has images, or is too long."""
        ...

    def n_missing(self, seq: RunningSequence) -> int:
        """How many of a sequence's tokens it has to compute before it can guess."""
        ...

    def seconds(self, n_missing: int, n_sequences: int, n_tokens: int) -> float:
        """What it takes to guess so many tokens for each of so many sequences, which lack
        ``n_missing`` tokens together; of no tokens: to compute these."""
        ...

    def catch_up(self, seq: RunningSequence, most: int) -> None:
        """Compute at most so many of the tokens that a sequence lacks."""
        ...

    def propose(self, wishes: Sequence[Wish], worth: float = 0.0) -> list[list[int]]:
        """Tokens for each; fewer than are wanted where it is in doubt. ``worth``: the chance
        below which a further token does not pay."""
        ...

    def use_pause(self) -> float | None:
        """Runner.use_pause, of its own."""
        ...


class Trust:
    """How many of a drafter's tokens come, of all requests; the recent count more."""

    def __init__(self, chance: float = FIRST_TRUST) -> None:
        self._n_right, self._n = chance * FIRST_WEIGHT, FIRST_WEIGHT

    @property
    def chance(self) -> float:
        return self._n_right / self._n

    def note(self, n_right: int, n_guessed: int) -> None:
        """So many of a guess were right; what came after the first wrong one says nothing."""
        n_decided = min(n_right + 1, n_guessed)
        kept = FORGETS**n_decided
        self._n_right = self._n_right * kept + n_right
        self._n = self._n * kept + n_decided


class ByModel:
    """The Drafter of a request for which a model guesses where no other does (asking.py)."""

    def __init__(self, kind: str, trust: Trust) -> None:
        self.kind, self._trust = kind, trust

    @property
    def trust(self) -> float:
        return self._trust.chance

    def propose(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        """Nothing by itself: Proposals.take has what the model guesses."""
        return ()

    def judge(self, n_right: int, n_guessed: int) -> None:
        self._trust.note(n_right, n_guessed)
