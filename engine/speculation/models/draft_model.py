"""A smaller model with its target's vocabulary that guesses what the target would write."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from gguf_serve.engine.forward.runner import RowLogits, Runner
from gguf_serve.engine.scheduling.sequence import Chunk, Plan
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.engine.speculation.model_drafter import States, Wish
from gguf_serve.engine.speculation.models.draft_pages import DraftPages
from gguf_serve.engine.speculation.models.guess_limits import GuessLimits, in_steps
from gguf_serve.engine.speculation.models.timed_steps import TimedSteps


class _Guessed(NamedTuple):
    """Tokens whose K and V are in the pages of sequence ``id``, from position ``start`` on."""

    id: int
    start: int
    tokens: tuple[int, ...]
    stamp: tuple[tuple[int, int], ...]  # of their pages


class _Draft:
    """A guess in the making."""

    def __init__(self, wish: Wish, start: int) -> None:
        seq = wish.seq
        self.wish, self.start, self.n_tokens = wish, start, len(seq.tokens)
        self.seq = seq.beside(list(seq.tokens))
        self.seq.n_computed = start
        self.chance = 1.0  # that all tokens so far come
        self.is_open = True

    @property
    def found(self) -> list[int]:
        return self.seq.tokens[self.n_tokens :]

    def size(self) -> int:
        """Tokens that are not computed yet."""
        return len(self.seq.tokens) - self.seq.n_computed

    def chunk(self) -> Chunk:
        """What is not computed yet, and wanted of it is what comes next."""
        start, end = self.seq.n_computed, len(self.seq.tokens)
        self.seq.n_computed = end
        return Chunk(self.seq, start, end - start, "last")


class DraftModel:
    """A ModelDrafter: its K and V lie in pages of the same numbers as its target's."""

    kind, wants_states = "draft-simple", False

    def __init__(
        self,
        runner: Runner,
        pages: DraftPages,
        limits: GuessLimits,
        n_slots: int,
    ) -> None:
        self._runner, self._coverage, self._limits = runner, pages.coverage, limits
        self.pages = pages
        self._guessed: list[_Guessed | None] = [None] * n_slots
        self._steps = TimedSteps([runner], limits.max_tokens)
        self.most, self.seconds = limits.most, self._steps.seconds

    def follow(self, plan: Plan, states: States | None) -> None:
        """It computes its own, when it is asked."""

    def can_guess(self, seq: RunningSequence) -> bool:
        return not seq.request.media and len(seq.tokens) + self.most <= self._limits.n_ctx

    def n_missing(self, seq: RunningSequence) -> int:
        """The last token always is."""
        guessed = self._guessed[seq.slot]
        if guessed is not None and guessed.id == seq.id:
            self._guessed[seq.slot] = None
            start, tokens, come = guessed.start, guessed.tokens, seq.tokens[guessed.start :]
            if guessed.stamp == self._coverage.stamp(seq, start, start + len(tokens)):
                self._coverage.mark(seq, start, start + _n_equal(tokens, come))
        return len(seq.tokens) - self._coverage.n_covered(seq)

    def catch_up(self, seq: RunningSequence, most: int) -> None:
        start = self._coverage.n_covered(seq)
        count = min(len(seq.tokens) - 1 - start, most, self._limits.max_tokens)
        if count < 1:
            return
        end = start + count
        part = seq.beside(seq.tokens[:end])
        self._steps.forward(self._runner, [Chunk(part, start, count, "none")])
        self._coverage.mark(seq, start, end)

    def propose(self, wishes: Sequence[Wish], worth: float = 0.0) -> list[list[int]]:
        """``worth``: the chance below which a further token is worth no step."""
        drafts = [_Draft(wish, self._coverage.n_covered(wish.seq)) for wish in wishes]
        going = drafts
        while going:
            for some in in_steps(going, _Draft.size, self._limits.max_tokens):
                found = self._steps.forward(self._runner, [draft.chunk() for draft in some])
                for draft, logits in zip(some, found, strict=True):
                    self._add(draft, logits, worth)
            going = [draft for draft in going if draft.is_open]
        for draft in drafts:
            self._keep(draft)
        return [self._limits.kept(draft.found) for draft in drafts]

    def _add(self, draft: _Draft, logits: RowLogits, worth: float) -> None:
        draft.is_open = False
        if (chosen := self._limits.choose(logits)) is None:
            return
        token, chance = chosen
        draft.chance *= chance
        draft.seq.tokens.append(token)
        n = len(draft.seq.tokens) - draft.n_tokens
        draft.is_open = n < draft.wish.n_tokens and draft.chance >= worth

    def _keep(self, draft: _Draft) -> None:
        """Its K and V hold for the sequence's tokens, and for those of the guess that come."""
        seq, end = draft.wish.seq, draft.n_tokens
        self._coverage.mark(seq, draft.start, end)
        computed = tuple(draft.seq.tokens[end : draft.seq.n_computed])
        stamp = self._coverage.stamp(seq, end, end + len(computed))
        self._guessed[seq.slot] = _Guessed(seq.id, end, computed, stamp)

    def use_pause(self) -> float | None:
        return self._runner.use_pause()


def _n_equal(guess: Sequence[int], come: Sequence[int]) -> int:
    n = 0
    while n < min(len(guess), len(come)) and guess[n] == come[n]:
        n += 1
    return n
