"""One request's drafters, and how good their guesses have been so far."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from typing import NamedTuple

from msgspec import Struct, field

from gguf_serve.engine.grammar.guide import Guide
from gguf_serve.engine.request import DraftLimits, Drafts
from gguf_serve.engine.speculation.drafter import Drafter, Prediction
from gguf_serve.engine.speculation.model_drafter import ByModel

FORGETS = 0.95  # of what is known of a drafter, with each of its tokens
MASK_SECONDS = 0.0005  # for which a step waits to know what its grammar allows
FIRST_WEIGHT = 4.0  # tokens that a drafter's trust counts for


class Guess(NamedTuple):
    """Tokens that may come next, and the chance of each, if those before it are right."""

    tokens: tuple[int, ...]
    chance: float


NOTHING = Guess((), 0.0)


class Record(Struct):
    """How many of a drafter's tokens have come, of those that could have: the recent count more."""

    trust: float
    n_right: float = 0.0
    n_decided: float = 0.0

    @property
    def chance(self) -> float:
        right = self.n_right + FIRST_WEIGHT * self.trust
        return right / (self.n_decided + FIRST_WEIGHT)

    def note(self, is_right: bool) -> None:
        self.n_right = self.n_right * FORGETS + is_right
        self.n_decided = self.n_decided * FORGETS + 1.0


class _Open(Struct):
    """Tokens proposed by a drafter, of which ``n_right`` have come."""

    drafter: Drafter
    tokens: Sequence[int]
    n_right: int = 0


class DraftCounts(Struct):
    """What was verified, and what of it was accepted; tokens by the drafter's kind."""

    n: int = 0  # guesses
    drafted: Counter[str] = field(default_factory=Counter)
    accepted: Counter[str] = field(default_factory=Counter)

    @property
    def drafts(self) -> Drafts:
        drafted, accepted = self.drafted, self.accepted
        expected = Prediction.kind
        return Drafts(
            self.n, drafted.total(), accepted.total(), drafted[expected], accepted[expected]
        )


class Proposals:
    """The guesses for one request: of the first of its drafters that has one.

    A guess is judged by the tokens that come, whether it was verified or not. So a drafter that
    was wrong is seen to be right again, without a step that costs more.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        drafters: Sequence[Drafter],
        eog_ids: Collection[int],
        guide: Guide | None = None,
        limits: DraftLimits | None = None,
    ) -> None:
        if guide is not None:
            guide.foresees = True
        self._limits = limits or DraftLimits()
        self._tokens, self._drafters = list(prompt), drafters
        self._eog_ids, self._guide = eog_ids, guide
        self._by_model = next((each for each in drafters if isinstance(each, ByModel)), None)
        self.n_for_model = 0  # tokens that a model may guess now
        self._records = {drafter.kind: Record(drafter.trust) for drafter in drafters}
        self._open: _Open | None = None
        self._verified = ""  # the kind of what is in the step
        self.counts = DraftCounts()

    def prepare(self) -> None:
        """The step's tokens have come: find out in another thread what the next may be."""
        if self._guide is not None:
            self._guide.begin()

    def propose(self, most: int) -> Guess:
        """At most so many tokens; none ends the text, since nothing can be saved after it."""
        limits, self.n_for_model = self._limits, 0
        most = most if limits.most < 0 else min(most, limits.most)
        if most < 1 or (self._guide is not None and not self._guide.may_guess(MASK_SECONDS)):
            return NOTHING
        if (found := self._found(most)) is not None:
            return self._guess(found, most)
        self.n_for_model = most if self._by_model is not None else 0
        return NOTHING

    @property
    def model_chance(self) -> float:
        """That of each token which a model guesses."""
        return 0.0 if self._by_model is None else self._records[self._by_model.kind].chance

    def take(self, tokens: Sequence[int]) -> Guess:
        """What a model guesses comes next, where ``propose`` had nothing and ``n_for_model`` was
        more than 0."""
        assert self._by_model is not None
        self._close()
        if not tokens:
            return NOTHING
        self._open = _Open(self._by_model, tokens)
        return self._guess(self._open, self.n_for_model)

    def _guess(self, found: _Open, most: int) -> Guess:
        limits = self._limits
        tokens = found.tokens[found.n_right : found.n_right + most]
        ends = (i for i, token in enumerate(tokens) if token in self._eog_ids)
        tokens = tokens[: next(ends, len(tokens))]
        chance = self._records[found.drafter.kind].chance
        if len(tokens) < limits.least or chance < limits.chance:
            return NOTHING
        return Guess(tuple(tokens), chance)

    def _found(self, most: int) -> _Open | None:
        """What is open, or a new guess; drafters before the open one's are asked again."""
        for drafter in self._drafters:
            if self._open is not None and self._open.drafter is drafter:
                return self._open
            tokens = drafter.propose(self._tokens, most)
            if len(tokens):
                self._close()
                self._open = _Open(drafter, tokens)
                return self._open
        return None

    def verify(self, tokens: Sequence[int]) -> None:
        """These, the first of what was proposed, go into the step."""
        assert self._open is not None
        kind = self._open.drafter.kind
        self._verified = kind
        self.counts.n += 1
        self.counts.drafted[kind] += len(tokens)
        if self._guide is not None:
            self._guide.look_ahead(tokens)

    def note(self, token: int) -> None:
        """A token has come."""
        self._tokens.append(token)
        if (found := self._open) is None:
            return
        is_right = found.tokens[found.n_right] == token
        self._records[found.drafter.kind].note(is_right)
        found.n_right += is_right
        if not is_right or found.n_right == len(found.tokens):
            self._close()

    def accept(self) -> None:
        """The next token of those that were verified is accepted."""
        self.counts.accepted[self._verified] += 1

    def _close(self) -> None:
        if self._open is not None:
            self._open.drafter.judge(self._open.n_right, len(self._open.tokens))
        self._open = None
