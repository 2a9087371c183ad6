"""Which tokens a block's rows of logits become: the likeliest of each, or such as follow from those
before, as DSpark corrects them and DFlash 2 chooses them."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.architecture.drafts import Draft, Selector
from gguf_serve.engine.forward.corrections import Corrections
from gguf_serve.engine.forward.runner import RowLogits, Runner
from gguf_serve.engine.forward.selection import Selection
from gguf_serve.engine.speculation.models.guess_limits import GuessLimits
from gguf_serve.engine.speculation.models.timed_steps import MEASUREMENTS, TimedSteps
from gguf_serve.engine.speculation.prices import Prices

Floats = npt.NDArray[np.float32]


class Block(NamedTuple):
    """What a draft has computed of a block, while the device has it. ``at``: the first of its rows
    and tokens in the step."""

    model: Runner
    anchor: int  # its first token, which is known
    logits: Sequence[RowLogits]
    at: int

    @property
    def rows(self) -> range:
        return range(self.at, self.at + len(self.logits))

    @property
    def is_broken(self) -> bool:
        return any(row.broken for row in self.logits)


class BlockChoice(Protocol):
    """Yields a block's tokens by the target's ids, and the chance of each; up to one that is not
    to be guessed."""

    @property
    def n_best(self) -> int:
        """Tokens of each row that are looked for."""
        ...

    def tokens(self, block: Block) -> Iterator[tuple[int, float]]: ...

    def seconds(self, n_tokens: int) -> float:
        """Of choosing so many."""
        ...


class Likeliest:
    """Each row's likeliest token."""

    n_best = 1

    def __init__(self, limits: GuessLimits, first: int, known_as: Callable[[int], int]) -> None:
        """``first``: the row that has the first token; ``known_as``: a token's id of the target."""
        self._limits, self._first, self._known_as = limits, first, known_as

    def tokens(self, block: Block) -> Iterator[tuple[int, float]]:
        for row in block.logits[self._first :]:
            if (chosen := self._limits.choose(row, self._known_as)) is None:
                return
            yield chosen

    def seconds(self, n_tokens: int) -> float:
        return 0.0


class Corrected:
    """DSpark's (forward/corrections.py)."""

    n_best = 1

    def __init__(self, limits: GuessLimits, first: int, draft: Draft, bigrams: Runner) -> None:
        self._limits, self._first = limits, first
        self._corrections = Corrections(draft, bigrams)
        self._steps = TimedSteps([bigrams], 1)

    def tokens(self, block: Block) -> Iterator[tuple[int, float]]:
        if block.is_broken:
            return
        rows = np.array([row.row() for row in block.logits])
        states = block.model.hidden(block.rows)
        corrected = self._corrections.correct(block.anchor, rows, states)
        sure = corrected.confidence
        chances = np.ones(len(rows)) if sure is None else sure
        for token, chance in zip(corrected.tokens, chances[self._first :], strict=True):
            if not self._limits.allow(token, float(chance)):
                return
            yield token, float(chance)

    def seconds(self, n_tokens: int) -> float:
        return self._steps.seconds(1, 1, n_tokens)


class Selected:
    """DFlash 2's (forward/selection.py)."""

    def __init__(
        self, limits: GuessLimits, draft: Draft, selector: Selector, tables: Sequence[Runner]
    ) -> None:
        self._limits, self.n_best = limits, selector.top_k
        most = min(limits.max_tokens, limits.n_ctx)
        self._selection = Selection(selector, tables, most, draft.ids)
        self._prices = Prices()
        rank = selector.predecessors[1].n_embd
        for n in (1, max(draft.block - 1, 1)):
            for _ in range(MEASUREMENTS):
                candidates = np.zeros((n, selector.top_k), np.int64)
                began = time.perf_counter()
                self._selection.pairs(0, candidates, np.zeros((n, rank), np.float32))
                self._prices.note(n, time.perf_counter() - began)

    def tokens(self, block: Block) -> Iterator[tuple[int, float]]:
        rows = block.logits[1:]
        if block.is_broken or not rows:
            return
        began = time.perf_counter()
        gates = block.model.scores_of(block.rows)[1:]
        lattice = self._selection.lattice(block.anchor, rows, gates)
        self._prices.note(len(rows), time.perf_counter() - began)
        for token, chance in lattice.walk():
            if not (math.isfinite(chance) and self._limits.allow(token, chance)):
                return
            yield token, chance

    def seconds(self, n_tokens: int) -> float:
        return self._prices.of(n_tokens) if n_tokens else 0.0
