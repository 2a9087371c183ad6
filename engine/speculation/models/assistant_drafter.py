"""Gemma 4's assistants as what guesses: small models that attend to the K and V of their target.

So they have nothing to catch up with. All tokens of a guess are read at one position, that of the
sequence's last token, beside the state of the token before it and then the assistant's own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.scheduling.sequence import Chunk, Plan
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.engine.speculation.model_drafter import States, Wish
from gguf_serve.engine.speculation.models.guess_limits import in_steps
from gguf_serve.engine.speculation.models.head_drafter import HeadDrafter


class _Draft:
    """A guess in the making: the last token of ``own`` is the one that is read next."""

    def __init__(self, wish: Wish, state: npt.NDArray[np.float32]) -> None:
        seq, n = wish.seq, len(wish.seq.tokens) - 1
        self.own = seq.beside(list(seq.tokens))
        self.own.n_encoder = n
        self.chunk = Chunk(self.own, n, 1, "last")
        self.n_tokens, self.state, self.found = wish.n_tokens, state, list[int]()
        self.chance = 1.0  # that all tokens so far come
        self.is_open = True


class AssistantDrafter(HeadDrafter):
    """A ModelDrafter whose layers' pages are its target's."""

    def follow(self, plan: Plan, states: States | None) -> None:
        assert states is not None
        rows, at = states(range(plan.n_tokens)), 0
        for chunk in plan.chunks:
            if self._may_be_asked(chunk.seq):
                known = self._known_of(chunk.seq)
                known.note(chunk.start, rows[at : at + chunk.count])
                known.forget_before(chunk.end - 1)
            at += chunk.count

    def can_guess(self, seq: RunningSequence) -> bool:
        return super().can_guess(seq) and seq.n_computed == len(seq.tokens) - 1

    def n_missing(self, seq: RunningSequence) -> int:
        return 1

    def catch_up(self, seq: RunningSequence, most: int) -> None:
        """There is nothing to catch up with."""

    def propose(self, wishes: Sequence[Wish], worth: float = 0.0) -> list[list[int]]:
        drafts = list[_Draft]()
        for wish in wishes:
            last = len(wish.seq.tokens) - 2
            drafts.append(_Draft(wish, self._known_of(wish.seq).of(last, last + 1)))
        going = drafts
        while going:
            for some in in_steps(going, lambda draft: 1, self._limits.max_tokens):
                self._go_on_with(some, worth)
            going = [draft for draft in going if draft.is_open]
        return [self._limits.kept(draft.found) for draft in drafts]

    def _go_on_with(self, drafts: Sequence[_Draft], worth: float) -> None:
        (model,) = self._heads
        given = np.concatenate([draft.state for draft in drafts])
        found = self._steps.forward(model, [draft.chunk for draft in drafts], given)
        own = model.states_of(range(len(drafts)))
        for i, (draft, logits) in enumerate(zip(drafts, found, strict=True)):
            draft.state, draft.is_open = own[i : i + 1], False
            if (chosen := self._limits.choose(logits)) is not None:
                token, chance = chosen
                draft.chance *= chance
                draft.found.append(token)
                draft.own.tokens[-1] = token
                draft.is_open = len(draft.found) < draft.n_tokens and draft.chance >= worth
