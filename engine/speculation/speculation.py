"""Which streams guess how much in the next step."""

from __future__ import annotations

from collections.abc import Callable

from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Plan, Sequence
from gguf_serve.engine.speculation.asking import Asking
from gguf_serve.engine.speculation.lengths import Offer, lengths
from gguf_serve.engine.speculation.model_drafter import ByModel, ModelDrafter
from gguf_serve.engine.speculation.prices import Prices
from gguf_serve.engine.speculation.proposals import NOTHING, Proposals

MOST = 64  # tokens of a guess


class Speculation:
    """Gives plans drafts. Lives in the engine's thread."""

    def __init__(
        self, scheduler: Scheduler, most_tokens: int | None, drafter: ModelDrafter | None = None
    ) -> None:
        """``most_tokens``: of a step, beyond which its numbers are not those of one token alone;
        None: any. ``drafter``: a model that guesses where nothing else does."""
        self._scheduler, self._most_tokens = scheduler, most_tokens
        self.prices = Prices()
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
        if self._drafter is not None and plan.copies:
            self._drafter.copy_pages(plan.copies)

    def draft(
        self, plan: Plan, proposals_of: Callable[[Sequence], Proposals | None],
        is_at_hand: Callable[[int], bool],
    ) -> None:  # fmt: skip
        """Let the streams of a plan guess. ``is_at_hand``: whether a step of so many tokens waits
        for nothing to be compiled."""
        if self._asking is not None:
            self._asking.settle()
        streams = [proposals_of(chunk.seq) for chunk in plan.chunks]
        room = self._scheduler.room_for_drafts(plan) if any(streams) else 0
        if self._most_tokens is not None:
            room = min(room, self._most_tokens - len(plan.chunks))
        if room < 1:
            return
        guesses = [
            stream.propose(min(room, _most(chunk.seq))) if stream is not None else NOTHING
            for chunk, stream in zip(plan.chunks, streams, strict=True)
        ]
        if self._asking is not None:
            self._asking.ask(plan, streams, guesses, room)
        offers = [Offer(len(guess.tokens), guess.chance) for guess in guesses]
        chosen = lengths(offers, room, self.prices.of)
        if not any(chosen) or not is_at_hand(len(plan.chunks) + sum(chosen)):
            return
        for i, (n, stream) in enumerate(zip(chosen, streams, strict=True)):
            if n and stream is not None:
                n_taken = self._scheduler.draft(plan, i, guesses[i].tokens[:n])
                stream.verify(guesses[i].tokens[:n_taken])

    def note(self, plan: Plan, seconds: float) -> None:
        """A plan's step has taken so long."""
        if self._drafter is not None:
            self._drafter.follow(plan, None)
        if all(chunk.outputs == "last" and chunk.end - chunk.start == 1 for chunk in plan.chunks):
            self.prices.note(sum(chunk.count for chunk in plan.chunks), seconds)
            if self._asking is not None:
                self._asking.note(seconds)


def _most(seq: Sequence) -> int:
    """Guesses that a sequence can use: the next token is sampled in any case."""
    wanted = seq.request.max_tokens
    return MOST if wanted < 0 else min(wanted - seq.n_generated - 1, MOST)
