"""When a model is asked to guess, and for how many tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence

from msgspec import Struct

from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Plan
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.engine.speculation.account import Account
from gguf_serve.engine.speculation.lengths import LEAST_GAIN, SLOWEST
from gguf_serve.engine.speculation.model_drafter import ModelDrafter, Trust, Wish
from gguf_serve.engine.speculation.prices import Prices
from gguf_serve.engine.speculation.proposals import Guess, Proposals

FEW = 16  # tokens that a sequence may lack to be guessed for at once
MOST, MOST_BESIDE = 512, 64  # tokens that it is then brought on by between two steps: alone, else
TRIAL = 3  # tokens of a guess that is made to learn how good it is
LEAST_LEFT = 32  # tokens that an answer is taken to have left, or as many as it has had
ROOM_TO_TRY = (
    2.0  # times what a sequence lacks costs: what is there before that is done for a trial
)


class _Asker(Struct, frozen=True):
    """A stream of a plan, and how many tokens a model may guess for it."""

    i: int  # of its chunk
    stream: Proposals
    seq: RunningSequence
    n_most: int
    n_missing: int


class _Step(Struct):
    """A step with guesses by the model; what it has brought is known when the next one begins."""

    streams: list[Proposals]
    n_accepted: int  # of their tokens, before
    n_chunks: int
    seconds: float


class Asking:
    """Has a model guess for streams that have no other guess, where that is promised to pay.

    What it costs is in the account before it is spent. So the guesses of a model that is never
    right, or too slow for its target, take no more than a share of the time.
    """

    def __init__(self, drafter: ModelDrafter, scheduler: Scheduler, prices: Prices) -> None:
        """``prices``: of the target's steps."""
        self._drafter, self._scheduler, self._prices = drafter, scheduler, prices
        self._account = Account()
        self._step: _Step | None = None
        self.trust = Trust()

    def ask(
        self, plan: Plan, streams: Sequence[Proposals | None], guesses: list[Guess], room: int
    ) -> None:
        """Add the model's guesses to those of a plan's streams, of ``room`` tokens in all."""
        askers = self._askers(plan, streams)
        if not askers or not self._prices.is_measured:
            return
        late = [asker for asker in askers if asker.n_missing > FEW]
        if late:
            self._catch_up(late[0], len(plan.chunks))
        askers = [asker for asker in askers if asker.n_missing <= FEW]
        n = self._n_tokens(askers, len(plan.chunks), room) if askers else 0
        wishes = [
            Wish(asker.seq, self._scheduler.reserve(plan, asker.i, min(n, asker.n_most)))
            for asker in askers
        ]
        pairs = [
            (asker, wish)
            for asker, wish in zip(askers, wishes, strict=True)
            if wish.n_tokens
        ]  # fmt: skip
        if not pairs:
            return
        began = time.perf_counter()
        worth = self._worth(len(pairs), len(plan.chunks))
        found = self._drafter.propose([wish for _, wish in pairs], worth)
        for (asker, _), tokens in zip(pairs, found, strict=True):
            guesses[asker.i] = asker.stream.take(tokens)
        asked = [asker.stream for asker, _ in pairs]
        spent = time.perf_counter() - began
        self._step = _Step(asked, _n_accepted(asked), len(plan.chunks), spent)

    def _askers(self, plan: Plan, streams: Sequence[Proposals | None]) -> list[_Asker]:
        return [
            _Asker(i, stream, chunk.seq, stream.n_for_model, self._drafter.n_missing(chunk.seq))
            for i, (chunk, stream) in enumerate(zip(plan.chunks, streams, strict=True))
            if stream is not None and stream.n_for_model and self._drafter.can_guess(chunk.seq)
        ]

    def note(self, seconds: float) -> None:
        """A step of the target has taken so long."""
        if self._step is None:
            self._account.earn(seconds)
        else:
            self._step.seconds += seconds

    def settle(self) -> None:
        """What the last step has brought is known."""
        if (step := self._step) is not None:
            n = _n_accepted(step.streams) - step.n_accepted
            without = self._prices.of(step.n_chunks) * (1.0 + n / step.n_chunks)
            self._account.settle(without - step.seconds)
            self._step = None

    def _n_tokens(self, askers: Sequence[_Asker], n_chunks: int, room: int) -> int:
        """Of each guess; 0: it does not pay. Those of which too little is known are tried out."""
        most = min(self._drafter.most, room // len(askers))
        chances = [asker.stream.model_chance for asker in askers]
        n_missing = sum(asker.n_missing for asker in askers)
        alone, best, best_gain = self._prices.of(n_chunks), 0, LEAST_GAIN
        for n in range(1, most + 1):
            spent = self._seconds(n, len(askers), n_missing, n_chunks)
            brought = sum(chance**k for chance in chances for k in range(1, n + 1))
            gain = (1.0 + brought / n_chunks) * alone / spent
            spares = len(askers) == n_chunks or spent * SLOWEST <= alone
            if gain > best_gain and spares:
                best, best_gain = n, gain
        n = best or min(TRIAL, most)
        if not best and len(askers) < n_chunks:
            return 0
        cost = self._seconds(n, len(askers), n_missing, n_chunks) - alone
        return n if n and self._account.has(cost) else 0

    def _seconds(self, n: int, n_askers: int, n_missing: int, n_chunks: int) -> float:
        """Of a step in which so many tokens are guessed for each, and all are verified."""
        verified = self._prices.of(n_chunks + n * n_askers)
        return verified + self._drafter.seconds(n_missing, n_askers, n)

    def _worth(self, n_askers: int, n_chunks: int) -> float:
        """The chance of a token that just pays for guessing and verifying it."""
        guessed = self._drafter.seconds(0, n_askers, 2)
        verified = self._prices.of(n_chunks + 2 * n_askers) - self._prices.of(n_chunks + n_askers)
        return (guessed + verified) * n_chunks / n_askers / self._prices.of(n_chunks)

    def _catch_up(self, asker: _Asker, n_chunks: int) -> None:
        """Go a step further with a sequence of which much is missing, if its answer is expected
        to bring that in: to last as long again as it has. Or else, where there is more than enough
        in the account, to learn how good the model is for such a text."""
        drafter, alone = self._drafter, self._prices.of(1)
        chance, saved = asker.stream.model_chance, 0.0
        for n in range(1, drafter.most + 1):
            brought = 1.0 + sum(chance**k for k in range(1, n + 1))
            saved = max(saved, alone - self._seconds(n, 1, 1, 1) / brought)
        request, so_far = asker.seq.request, asker.seq.n_generated
        n_left = max(so_far, LEAST_LEFT)
        if request.max_tokens >= 0:
            n_left = min(n_left, request.max_tokens - so_far)
        cost = drafter.seconds(asker.n_missing, 1, 0)
        pays = cost <= saved * n_left
        if not pays and n_left < LEAST_LEFT:
            return
        if not self._account.has(cost if pays else ROOM_TO_TRY * cost):
            return
        began = time.perf_counter()
        drafter.catch_up(asker.seq, MOST if n_chunks == 1 else MOST_BESIDE)
        self._account.settle(began - time.perf_counter())


def _n_accepted(streams: Sequence[Proposals]) -> int:
    return sum(stream.counts.accepted.total() for stream in streams)
