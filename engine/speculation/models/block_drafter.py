"""Drafts of blocks as what guesses (DFlash, DSpark): all tokens of a guess at once.

The K and V of a sequence's tokens are made of the states of its target, as these come. A guess is
then one step: the last token, and masks that become the tokens after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gguf_serve.engine.architecture.drafts import Draft
from gguf_serve.engine.forward.batch import OutputRow
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.engine.speculation.model_drafter import Wish
from gguf_serve.engine.speculation.models.block_choice import (
    Block,
    BlockChoice,
    Corrected,
    Likeliest,
    Selected,
)
from gguf_serve.engine.speculation.models.draft_pages import DraftPages
from gguf_serve.engine.speculation.models.guess_limits import GuessLimits, in_steps
from gguf_serve.engine.speculation.models.head_drafter import HeadDrafter


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
        """``models``: the draft and those that it chooses a block's tokens by (Draft.beside)."""
        super().__init__(kind, models[:1], pages, limits, n_slots, n_ahead=1, ids=draft.ids)
        self._draft, self._first = draft, 0 if draft.from_anchor else 1
        self._choice: BlockChoice
        if draft.selector is not None:
            self._choice = Selected(limits, draft, draft.selector, models[1:])
        elif draft.bigrams is not None:
            self._choice = Corrected(limits, self._first, draft, models[1])
        else:
            self._choice = Likeliest(limits, self._first, self._known_as)
        self.most = min(limits.most, draft.block - self._first)
        self.seconds = self._seconds

    def _seconds(self, n_missing: int, n_sequences: int, n_tokens: int) -> float:
        found = self._steps.seconds(n_missing - n_sequences, n_sequences, 0)
        if n_tokens:
            found += self._steps.seconds((n_tokens + self._first) * n_sequences, n_sequences, 0)
        return found + self._choice.seconds(n_tokens) * n_sequences

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
            OutputRow(chunk, chunk.start + i, self._choice.n_best, scored=True)
            for chunk in chunks
            for i in range(chunk.count)
        ]
        logits, at, found = self._steps.forward(model, chunks, rows=rows), 0, list[list[int]]()
        for chunk in chunks:
            anchor = chunk.seq.tokens[chunk.start]
            block = Block(model, anchor, logits[at : at + chunk.count], at)
            found.append(self._likely(self._choice.tokens(block), worth))
            at += chunk.count
        return found

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
