"""What steps take: of models that guess, and of those that they guess for."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.forward.batch import OutputRow
from gguf_serve.engine.forward.runner import RowLogits, Runner
from gguf_serve.engine.request import Request
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.engine.speculation.prices import Prices

Floats = npt.NDArray[np.float32]
MEASUREMENTS = 3  # of each size, before anything is asked for
SIZES = (1, 2, 8)  # tokens of steps that are measured
TARGET_SIZES = (1, 2, 4, 8)


def prices_of_target(target: Runner, max_tokens: int) -> Prices:
    """Of steps that verify guesses, before there have been any. Nothing must be in the cache yet:
    what is computed is of no sequence."""
    prices = Prices()
    for n in TARGET_SIZES:
        chunk = Chunk(_nobody(min(n, max_tokens)), 0, min(n, max_tokens), "last")
        rows = [OutputRow(chunk, i, 1) for i in range(chunk.count)]
        for _ in range(MEASUREMENTS):
            began = time.perf_counter()
            target.forward([chunk], [], rows)
            prices.note(chunk.count, time.perf_counter() - began)
    return prices


def _nobody(n: int) -> RunningSequence:
    """A sequence of so many tokens, in the first slot and page."""
    return RunningSequence([0] * n, id=-1, request=Request((0,)), n_prompt=n, slot=0, table=[0])


class TimedSteps:
    """Steps of models that are alike: heads of one target, or one model."""

    def __init__(self, models: Sequence[Runner], max_tokens: int, state_width: int = 0) -> None:
        """Know at once what a guess costs; what is computed for that is of no sequence.
        ``max_tokens``: of a step; ``state_width``: of what is read beside a token, if it is."""
        self._prices = Prices()
        for n in SIZES:
            n = min(n, max_tokens)
            seq = _nobody(n)
            states = np.zeros((n, state_width), np.float32) if state_width else None
            for _ in range(MEASUREMENTS):
                for model in models:
                    self.forward(model, [Chunk(seq, 0, n, "last")], states)

    def forward(
        self,
        model: Runner,
        chunks: Sequence[Chunk],
        states: Floats | None = None,
        rows: Sequence[OutputRow] | None = None,
    ) -> list[RowLogits]:
        """``rows``: those of the last tokens of chunks that want one, if they are not given;
        ``states``: see Runner.forward."""
        if rows is None:
            rows = [
                OutputRow(chunk, chunk.end - 1, 1, scored=True)
                for chunk in chunks
                if chunk.outputs == "last"
            ]
        began = time.perf_counter()
        found = model.forward(chunks, [], rows, states=states)
        self._prices.note(sum(chunk.count for chunk in chunks), time.perf_counter() - began)
        return found

    def seconds(self, n_missing: int, n_sequences: int, n_tokens: int) -> float:
        """Of a first step with so many tokens, and of one more for each further token."""
        first = self._prices.of(n_missing) if n_missing else 0.0
        return first + max(n_tokens - 1, 0) * self._prices.of(n_sequences)
