"""Drafts of blocks as what guesses (DFlash, DSpark): all tokens of a guess at once.

The K and V of a sequence's tokens are made of the states of its target, as these come. A guess is
then one step: the last token, and masks that become the tokens after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from gguf_serve.engine.architecture.drafts import Draft
from gguf_serve.engine.forward.batch import OutputRow
from gguf_serve.engine.forward.corrections import Corrections
from gguf_serve.engine.forward.runner import RowLogits, Runner
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.engine.speculation.model_drafter import Wish
from gguf_serve.engine.speculation.models.draft_pages import DraftPages
from gguf_serve.engine.speculation.models.guess_limits import GuessLimits, in_steps
from gguf_serve.engine.speculation.models.head_drafter import Floats, HeadDrafter
from gguf_serve.engine.speculation.models.timed_steps import TimedSteps


class BlockDrafter(HeadDrafter):
    """A ModelDrafter."""

    def __init__(
        self,
        kind: str,
        models: Sequence[Runner],
        pages: DraftPages,
        limits: GuessLimits,
        n_slots: int,
        draft: Draft,
    ) -> None:
        """``models``: the draft and, if it corrects its logits, the model that it does so with."""
        super().__init__(kind, models[:1], pages, limits, n_slots, n_ahead=1, ids=draft.ids)
        self._draft, self._first = draft, 0 if draft.from_anchor else 1
        self._corrections = Corrections(draft, models[1]) if draft.bigrams is not None else None
        self._correcting = TimedSteps(models[1:], 1)
        self.most = min(limits.most, draft.block - self._first)
        self.seconds = self._seconds

    def _seconds(self, n_missing: int, n_sequences: int, n_tokens: int) -> float:
        found = self._steps.seconds(n_missing - n_sequences, n_sequences, 0)
        if n_tokens:
            found += self._steps.seconds((n_tokens + self._first) * n_sequences, n_sequences, 0)
        if self._corrections is not None:
            found += self._correcting.seconds(1, 1, n_tokens) * n_sequences
        return found

    def _own(self, seq: RunningSequence) -> RunningSequence:
        return seq.beside(list(seq.tokens))

    def _compute(self, heads: Sequence[Runner], own: RunningSequence, start: int, end: int) -> None:
        own.n_encoder = end
        super()._compute(heads, own, start, end)
        own.n_encoder = 0

    def propose(self, wishes: Sequence[Wish], worth: float = 0.0) -> list[list[int]]:
        """``worth``: the chance below which a guess ends."""
        chunks = [self._block(wish) for wish in wishes]
        found = list[list[int]]()
        for some in in_steps(chunks, lambda chunk: chunk.count, self._limits.max_tokens):
            found += self._guess(some, worth)
        return [self._limits.kept(guess) for guess in found]

    def _block(self, wish: Wish) -> Chunk:
        """A block after all that is known of a sequence."""
        own = self._own(wish.seq)
        last = len(own.tokens) - 1
        start = self._coverage.n_covered(own)
        if start < last:
            self._compute(self._heads, own, start, last)
        count = wish.n_tokens + self._first
        own.tokens += [self._draft.mask] * (count - 1)
        return Chunk(own, last, count, "hidden")

    def _guess(self, chunks: Sequence[Chunk], worth: float) -> list[list[int]]:
        (model,) = self._heads
        rows = [
            OutputRow(chunk, chunk.start + i, 1, scored=True)
            for chunk in chunks
            for i in range(chunk.count)
        ]
        logits, at, found = self._steps.forward(model, chunks, rows=rows), 0, list[list[int]]()
        states = model.hidden(range(len(rows)))
        for chunk in chunks:
            mine = slice(at, at + chunk.count)
            anchor = chunk.seq.tokens[chunk.start]
            tokens = self._tokens(anchor, logits[mine], states[mine])
            found.append(self._likely(tokens, worth))
            at += chunk.count
        return found

    def _tokens(
        self, anchor: int, logits: Sequence[RowLogits], states: Floats
    ) -> Iterable[tuple[int, float]]:
        """A block's tokens by the target's ids, and the chance of each; up to one that is not to
        be guessed."""
        if self._corrections is None:
            for row in logits[self._first :]:
                if (chosen := self._limits.choose(row, self._known_as)) is None:
                    return
                yield chosen
        elif not any(row.broken for row in logits):
            rows = np.array([row.row() for row in logits])
            corrected = self._corrections.correct(anchor, rows, states)
            sure = corrected.confidence
            chances = np.ones(len(rows)) if sure is None else sure
            for token, chance in zip(corrected.tokens, chances[self._first :], strict=True):
                if not self._limits.allow(token, float(chance)):
                    return
                yield token, float(chance)

    @staticmethod
    def _likely(tokens: Iterable[tuple[int, float]], worth: float) -> list[int]:
        """The first tokens, as long as it is likely enough that all of them come."""
        found, so_far = list[int](), 1.0
        for token, chance in tokens:
            so_far *= chance
            if so_far < worth:
                break
            found.append(token)
        return found
