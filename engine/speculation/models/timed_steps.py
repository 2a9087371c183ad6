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
    return TimedSteps([target], max_tokens, sizes=TARGET_SIZES, verify=True).prices


class TimedSteps:
    """Steps of models that are alike: heads of one target, or one model."""

    def __init__(
        self,
        models: Sequence[Runner],
        max_tokens: int,
        state_width: int = 0,
        *,
        sizes: Sequence[int] = SIZES,
        verify: bool = False,
    ) -> None:
        """Know at once what steps of these sizes cost; what is computed for that is of no sequence.
        ``max_tokens``: of a step; ``state_width``: of what is read beside a token, if it is;
        ``verify``: logits are wanted of all tokens, not of the last."""
        self.prices = Prices()
        for n in sizes:
            n = min(n, max_tokens)
            seq = RunningSequence(
                [0] * n, id=-1, request=Request((0,)), n_prompt=n, slot=0, table=[0]
            )
            chunk = Chunk(seq, 0, n, "last")
            rows = [OutputRow(chunk, i, 1) for i in range(n)] if verify else None
            states = np.zeros((n, state_width), np.float32) if state_width else None
            for _ in range(MEASUREMENTS):
                for model in models:
                    self.forward(model, [chunk], states, rows)

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
        self.prices.note(sum(chunk.count for chunk in chunks), time.perf_counter() - began)
        return found

    def seconds(self, n_missing: int, n_sequences: int, n_tokens: int) -> float:
        """Of a first step with so many tokens, and of one more for each further token."""
        first = self.prices.of(n_missing) if n_missing else 0.0
        return first + max(n_tokens - 1, 0) * self.prices.of(n_sequences)
