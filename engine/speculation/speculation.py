"""Which streams guess how much in the next step."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil

from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Plan, Sequence
from gguf_serve.engine.speculation.asking import Asking
from gguf_serve.engine.speculation.lengths import Offer, lengths
from gguf_serve.engine.speculation.model_drafter import ByModel, ModelDrafter, States
from gguf_serve.engine.speculation.prices import Prices
from gguf_serve.engine.speculation.proposals import NOTHING, Proposals

MOST = 64  # tokens of a guess


class Speculation:
    """Gives plans drafts. Lives in the engine's thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        drafter: ModelDrafter | None = None,
        prices: Prices | None = None,
    ) -> None:
        """``drafter``: a model that guesses where nothing else does; ``prices``: of steps, as far
        as they are known."""
        self._scheduler = scheduler
        self.prices = prices or Prices()
        self._drafter = drafter
        self._asking = None if drafter is None else Asking(drafter, scheduler, self.prices)

    def by_model(self) -> ByModel | None:
        """For a request: that the model guesses."""
        if self._drafter is None or self._asking is None:
            return None
        return ByModel(self._drafter.kind, self._asking.trust)

    def use_pause(self) -> float | None:
        """Runner.use_pause, of the model that guesses."""
        return None if self._drafter is None else self._drafter.use_pause()

    def release(self) -> None:
        """Let the model go."""
        self._drafter = self._asking = None

    def begin(self, plan: Plan) -> None:
        """A plan is about to be carried out."""
        if plan.copies and self._drafter is not None and self._drafter.pages is not None:
            self._drafter.pages.copy(plan.copies)

    def draft(
        self, plan: Plan, proposals_of: Callable[[Sequence], Proposals | None],
        is_at_hand: Callable[[int], bool],
    ) -> None:  # fmt: skip
        """Let the streams of a plan guess. ``is_at_hand``: whether a step of so many tokens waits
        for nothing to be compiled."""
        if self._asking is not None:
            self._asking.settle()
        # What was rewound goes on first, or its state would stay where it is.
        streams = [None if chunk.seq.rewound else proposals_of(chunk.seq) for chunk in plan.chunks]
        room = self._scheduler.room_for_drafts(plan) if any(streams) else 0
        if room < 1:
            return
        guesses = [
            stream.propose(min(room, _most(chunk.seq))) if stream is not None else NOTHING
            for chunk, stream in zip(plan.chunks, streams, strict=True)
        ]
        if self._asking is not None:
            self._asking.ask(plan, streams, guesses, room)
        offers = [Offer(len(guess.tokens), guess.chance) for guess in guesses]
        chosen = lengths(offers, room, self._price(plan))
        if not any(chosen) or not is_at_hand(plan.n_tokens + sum(chosen)):
            return
        for i, (n, stream) in enumerate(zip(chosen, streams, strict=True)):
            if stream is None or not n:
                continue
            if n_taken := self._scheduler.draft(plan, i, guesses[i].tokens[:n]):
                stream.verify(guesses[i].tokens[:n_taken])

    def _price(self, plan: Plan) -> Callable[[int], float]:
        """Of a step of a plan, by the tokens that it would have if each of its streams had one
        beside its guesses. Where a wrong guess has a stream rewound, every second one is taken to
        be computed twice."""
        n_streams, again = len(plan.chunks), self._scheduler.rewinds / 2
        n_more = plan.n_tokens - n_streams
        return lambda n: self.prices.of(n + n_more + ceil((n - n_streams) * again))

    def note(self, plan: Plan, seconds: float, states: States | None = None) -> None:
        """A plan's step has taken so long; ``states``: see ModelDrafter.follow."""
        if self._drafter is not None:
            self._drafter.follow(plan, states if self._drafter.wants_states else None)
        if plan.decodes:
            self.prices.note(plan.n_tokens, seconds)
            if self._asking is not None:
                self._asking.note(seconds)


def _most(seq: Sequence) -> int:
    """Guesses that a sequence can use: the next token is sampled in any case."""
    wanted = seq.request.max_tokens
    return MOST if wanted < 0 else min(wanted - seq.n_generated - 1, MOST)
