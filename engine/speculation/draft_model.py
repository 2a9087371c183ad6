"""A smaller model with its target's vocabulary that guesses what the target would write."""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Sequence
from typing import NamedTuple

from gguf_serve.engine.forward.batch import OutputRow
from gguf_serve.engine.forward.runner import RowLogits, Runner
from gguf_serve.engine.request import Request
from gguf_serve.engine.scheduling.page_cache import PageCache, PageCopy
from gguf_serve.engine.scheduling.sequence import Chunk, Plan
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.engine.speculation.coverage import Coverage
from gguf_serve.engine.speculation.model_drafter import States, Wish
from gguf_serve.engine.speculation.prices import Prices

MEASUREMENTS = 3  # of each size, before anything is asked for
SIZES = (1, 2, 8)  # tokens of steps that are measured


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
        self.seq = RunningSequence(
            list(seq.tokens), id=seq.id, request=seq.request, n_prompt=seq.n_prompt,
            slot=seq.slot, table=seq.table, n_computed=start,
        )  # fmt: skip
        self.chance = 1.0  # that all tokens so far come
        self.is_open = True

    @property
    def found(self) -> list[int]:
        return self.seq.tokens[self.n_tokens :]

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
        cache: PageCache,
        *,
        n_vocab: int,
        eog_ids: Collection[int],
        n_slots: int,
        n_ctx: int,
        max_tokens: int,
        most: int,
        least: int = 0,
        p_min: float = 0.0,
    ) -> None:
        """``n_vocab``, ``eog_ids``: the target's; ``n_ctx``: of a sequence; ``max_tokens``: of a
        step; ``most``, ``least``: of a guess; ``p_min``: the probability that each of its tokens
        must have."""
        self._runner, self._coverage = runner, Coverage(cache)
        self._n_vocab, self._eog_ids = n_vocab, eog_ids
        self._n_ctx, self._max_tokens, self.most = n_ctx, max_tokens, most
        self._least, self._p_min = least, p_min
        self._guessed: list[_Guessed | None] = [None] * n_slots
        self._prices = Prices()
        self._measure()

    def _measure(self) -> None:
        """Know at once what a guess costs; what is computed for that is of no sequence."""
        for n in SIZES:
            n = min(n, self._max_tokens)
            seq = RunningSequence(
                [0] * n, id=-1, request=Request((0,)), n_prompt=n, slot=0, table=[0]
            )
            for _ in range(MEASUREMENTS):
                self._forward([Chunk(seq, 0, n, "last")])

    def _forward(self, chunks: Sequence[Chunk]) -> list[RowLogits]:
        rows = [
            OutputRow(chunk, chunk.end - 1, 1, scored=True)
            for chunk in chunks
            if chunk.outputs == "last"
        ]
        began = time.perf_counter()
        found = self._runner.forward(chunks, [], rows)
        self._prices.note(sum(chunk.count for chunk in chunks), time.perf_counter() - began)
        return found

    def follow(self, plan: Plan, states: States | None) -> None:
        """It computes its own, when it is asked."""

    def copy_pages(self, copies: Sequence[PageCopy]) -> None:
        for copy in copies:
            for pages in self._runner.pages:
                pages.copy_page(copy.source, copy.target)
            self._coverage.copy(copy)

    def can_guess(self, seq: RunningSequence) -> bool:
        return not seq.request.media and len(seq.tokens) + self.most <= self._n_ctx

    def n_missing(self, seq: RunningSequence) -> int:
        """The last token always is."""
        guessed = self._guessed[seq.slot]
        if guessed is not None and guessed.id == seq.id:
            self._guessed[seq.slot] = None
            start, tokens, come = guessed.start, guessed.tokens, seq.tokens[guessed.start :]
            if guessed.stamp == self._coverage.stamp(seq, start, start + len(tokens)):
                self._coverage.mark(seq, start, start + _n_equal(tokens, come))
        return len(seq.tokens) - self._coverage.n_covered(seq)

    def seconds(self, n_missing: int, n_sequences: int, n_tokens: int) -> float:
        first = self._prices.of(n_missing) if n_missing else 0.0
        return first + max(n_tokens - 1, 0) * self._prices.of(n_sequences)

    def catch_up(self, seq: RunningSequence, most: int) -> None:
        start = self._coverage.n_covered(seq)
        count = min(len(seq.tokens) - 1 - start, most, self._max_tokens)
        if count < 1:
            return
        end = start + count
        part = RunningSequence(
            seq.tokens[:end], id=seq.id, request=seq.request, n_prompt=end, slot=seq.slot,
            table=seq.table,
        )  # fmt: skip
        self._forward([Chunk(part, start, count, "none")])
        self._coverage.mark(seq, start, end)

    def propose(self, wishes: Sequence[Wish], worth: float = 0.0) -> list[list[int]]:
        """``worth``: the chance below which a further token is worth no step."""
        drafts = [_Draft(wish, self._coverage.n_covered(wish.seq)) for wish in wishes]
        going = drafts
        while going:
            chunks = [draft.chunk() for draft in going]
            for draft, logits in zip(going, self._forward(chunks), strict=True):
                self._add(draft, logits, worth)
            going = [draft for draft in going if draft.is_open]
        for draft in drafts:
            self._keep(draft)
        return [draft.found if len(draft.found) >= self._least else [] for draft in drafts]

    def _add(self, draft: _Draft, logits: RowLogits, worth: float) -> None:
        draft.is_open = False
        if logits.broken:
            return
        found = logits.allowed(1)
        token, chance = found.ids[0], math.exp(min(found.logits[0] - found.log_sum_exp, 0.0))
        if token >= self._n_vocab or token in self._eog_ids or chance < self._p_min:
            return
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
