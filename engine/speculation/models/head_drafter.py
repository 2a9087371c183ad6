"""Heads of speculation as what guesses: layers that read a state of their target beside a token.

The heads of a file (DeepSeek-V3's multi-token prediction) read at position i the token i and the
state that the target had at i - 1; EAGLE-3's draft reads token i + 1 and the state at i. So they
follow their target: the K and V of its tokens are made of its states as these come, in pages of the
same numbers. To guess, a head goes on with its own states; of several each guesses one token more,
the last one all that follow.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.scheduling.sequence import Chunk, Plan
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.engine.speculation.model_drafter import States, Wish
from gguf_serve.engine.speculation.models.draft_pages import DraftPages
from gguf_serve.engine.speculation.models.guess_limits import GuessLimits, in_steps
from gguf_serve.engine.speculation.models.known_states import KnownStates
from gguf_serve.engine.speculation.models.timed_steps import TimedSteps

Floats = npt.NDArray[np.float32]
FEW = 8  # tokens that the heads wait for, if nobody wants a guess before


class _Draft:
    """A guess in the making. ``own``: the sequence as the heads see it, and the guess after it."""

    def __init__(self, wish: Wish, own: RunningSequence, start: int, given: Floats) -> None:
        self.wish, self.own, self.start, self.n = wish, own, start, len(own.tokens)
        self.given, self.states = given, list[Floats]()  # the target's, and the heads' own
        self.chance = 1.0  # that all tokens so far come
        self.is_open = True

    @property
    def found(self) -> list[int]:
        return self.own.tokens[self.n :]

    def chunk(self, *, anew: bool) -> tuple[Chunk, Floats]:
        """What a head computes next, and the states that it reads: the last token, or ``anew`` all
        that is not computed with the target's states."""
        end = len(self.own.tokens)
        start = self.start if anew else end - 1
        states = [self.given, *self.states] if anew else self.states[-1:]
        return Chunk(self.own, start, end - start, "last"), np.concatenate(states)


class HeadDrafter:
    """A ModelDrafter."""

    wants_states = True

    def __init__(
        self,
        kind: str,
        heads: Sequence[Runner],
        pages: DraftPages,
        limits: GuessLimits,
        n_slots: int,
        *,
        n_ahead: int = 0,
        ids: npt.NDArray[np.int64] | None = None,
    ) -> None:
        """``n_ahead``: by how many the tokens that are read are ahead of their position; ``ids``:
        the heads' tokens by the target's ids, None: the same."""
        self.kind, self._heads, self._coverage = kind, heads, pages.coverage
        self.pages = None if pages.are_of_target else pages
        self._limits, self._n_ahead, self._ids = limits, n_ahead, ids
        self._width = heads[0].state_width
        self._known = [KnownStates(-1, self._width) for _ in range(n_slots)]
        self._steps = TimedSteps(heads, limits.max_tokens, self._width)
        self.most, self.seconds = limits.most, self._steps.seconds

    def _own(self, seq: RunningSequence) -> RunningSequence:
        """A sequence as the heads see it."""
        return seq.beside(seq.tokens[self._n_ahead :])

    def _known_of(self, seq: RunningSequence) -> KnownStates:
        if self._known[seq.slot].id != seq.id:
            self._known[seq.slot] = KnownStates(seq.id, self._width)
        return self._known[seq.slot]

    def _given(self, seq: RunningSequence, start: int, end: int) -> Floats:
        """The target's states that are read from position ``start`` to before ``end``."""
        shift = self._n_ahead - 1
        return self._known_of(seq).of(start + shift, end + shift)

    def follow(self, plan: Plan, states: States | None) -> None:
        assert states is not None
        rows, at = states(range(plan.n_tokens)), 0
        for chunk in plan.chunks:
            seq = chunk.seq
            if self._may_be_asked(seq):
                self._known_of(seq).note(chunk.start, rows[at : at + chunk.count])
                if not chunk.draft:  # which of its states hold is not known yet
                    self._go_on(seq)
            at += chunk.count

    def _may_be_asked(self, seq: RunningSequence) -> bool:
        request = seq.request
        return request.has_text and request.drafts.most != 0 and not request.media

    def _go_on(self, seq: RunningSequence) -> None:
        """Compute what can be and was put off, if that is much."""
        own = self._own(seq)
        start = self._coverage.n_covered(own)
        end = min(len(own.tokens) - 1, self._known_of(seq).end + 1 - self._n_ahead)
        if end - start >= FEW:
            self._compute(self._heads, own, start, end)

    def _compute(self, heads: Sequence[Runner], own: RunningSequence, start: int, end: int) -> None:
        """K and V of these tokens."""
        for at in range(start, end, self._limits.max_tokens):
            stop = min(at + self._limits.max_tokens, end)
            given = self._given(own, at, stop)
            for head in heads:
                self._steps.forward(head, [Chunk(own, at, stop - at, "none")], given)
        self._keep(own, start, end)

    def _keep(self, own: RunningSequence, start: int, end: int) -> None:
        self._coverage.mark(own, start, end)
        self._known_of(own).forget_before(end + self._n_ahead - 1)

    def can_guess(self, seq: RunningSequence) -> bool:
        return self._may_be_asked(seq) and len(seq.tokens) + self.most <= self._limits.n_ctx

    def n_missing(self, seq: RunningSequence) -> int:
        """The last token always is."""
        own = self._own(seq)
        return len(own.tokens) - self._coverage.n_covered(own)

    def catch_up(self, seq: RunningSequence, most: int) -> None:
        """What is not known any more is taken to be zeros."""
        own = self._own(seq)
        start = self._coverage.n_covered(own)
        end = min(len(own.tokens) - 1, start + most)
        if start < end:
            self._compute(self._heads, own, start, end)

    def propose(self, wishes: Sequence[Wish], worth: float = 0.0) -> list[list[int]]:
        """``worth``: the chance below which a further token is worth no step."""
        drafts = [self._begin(wish) for wish in wishes]
        going, step = drafts, 0
        while going:
            head, anew = self._heads[min(step, len(self._heads) - 1)], step < len(self._heads)
            pairs = [(draft, *draft.chunk(anew=anew)) for draft in going]
            for some in in_steps(pairs, lambda pair: pair[1].count, self._limits.max_tokens):
                self._ask(head, some, worth)
            going, step = [draft for draft in going if draft.is_open], step + 1
        for draft in drafts:
            left = self._heads[len(draft.states) :]  # that were not asked
            own = self._own(draft.wish.seq)
            self._compute(left, own, draft.start, draft.n) if left else self._keep(
                own, draft.start, draft.n
            )
        return [self._limits.kept(draft.found) for draft in drafts]

    def _begin(self, wish: Wish) -> _Draft:
        own = self._own(wish.seq)
        start = self._coverage.n_covered(own)
        return _Draft(wish, own, start, self._given(own, start, len(own.tokens)))

    def _ask(
        self, head: Runner, some: Sequence[tuple[_Draft, Chunk, Floats]], worth: float
    ) -> None:
        """Have a head guess the next token of some drafts."""
        chunks = [chunk for _, chunk, _ in some]
        given = np.concatenate([states for _, _, states in some])
        found = self._steps.forward(head, chunks, given)
        ends = np.cumsum([chunk.count for chunk in chunks])
        for (draft, _, _), logits, end in zip(some, found, ends, strict=True):
            draft.states.append(head.states_of(range(end - 1, end)))
            draft.is_open = False
            chosen = self._limits.choose(logits, self._known_as)
            if chosen is not None:
                token, chance = chosen
                draft.chance *= chance
                draft.own.tokens.append(token)
                is_long = len(draft.found) >= draft.wish.n_tokens
                draft.is_open = not is_long and draft.chance >= worth

    def _known_as(self, token: int) -> int:
        return token if self._ids is None else int(self._ids[token])

    def use_pause(self) -> float | None:
        pauses = [head.use_pause() for head in self._heads]
        return min((pause for pause in pauses if pause is not None), default=None)
