"""What makes a block's tokens of its logits where each depends on the token before it (DSpark).

A block's rows are computed at once, and know nothing of each other's tokens. So each row is
corrected by a row of a bigram model, a product of two narrow matrices, for the token that the row
before it has become. That model is one of no layers: an embedding and an output.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from msgspec import Struct

from gguf_serve.engine.architecture.drafts import Draft
from gguf_serve.engine.forward.batch import OutputRow
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.request import Request
from gguf_serve.engine.scheduling.sequence import Chunk, Sequence

Floats = npt.NDArray[np.float32]


class Corrected(Struct, frozen=True):
    """A block's rows [n, n_vocab], the tokens that they draft, by the target's ids, and how sure it
    is of each row that its token will be accepted, 0 to 1; None: it does not say. The first row
    may draft none."""

    logits: Floats
    tokens: list[int]
    confidence: Floats | None


class Corrections:
    """The bigram model of a draft, and its judgement of itself."""

    def __init__(self, draft: Draft, bigrams: Runner) -> None:
        self._draft, self._bigrams = draft, bigrams

    def correct(self, anchor: int, logits: Floats, states: Floats) -> Corrected:
        """``logits`` of a block that begins with the token ``anchor``, and its hidden states,
        float32 [n, n_embd]."""
        judge, ids = self._draft.confidence, self._draft.ids
        rows, tokens = logits.copy(), list[int]()
        features = np.zeros((len(rows), 0 if judge is None else len(judge.weight)), np.float32)
        before = anchor
        for i, (row, state) in enumerate(zip(rows, states, strict=True)):
            if i == 0 and not self._draft.from_anchor:
                continue
            correction, embedding = self._after(before)
            row += correction
            if judge is not None:
                features[i] = np.concatenate([state, embedding])
            best = int(row.argmax())
            before = best if ids is None else int(ids[best])
            tokens.append(before)
        return Corrected(rows, tokens, None if judge is None else judge.of(features))

    def _after(self, token: int) -> tuple[Floats, Floats]:
        """What the bigram model adds to the logits after a token, and its embedding of that."""
        seq = Sequence.from_request(0, Request((token,)))
        seq.slot, seq.table = 0, [0]
        chunk = Chunk(seq, 0, 1, "hidden")
        (found,) = self._bigrams.forward([chunk], (), [OutputRow(chunk, 0, 1)])
        return found.row(), self._bigrams.hidden(range(1))[0]
