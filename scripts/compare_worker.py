"""The peer's worker for compare_peer.py: llama.cpp's tokens, greedy choices and scores.

Started by compare_peer.py with the interpreter that has llama-cpp-python.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from peer_model import N_BATCH, PeerContext, PeerModel
from peer_process import Answer, answer_lines

N_CTX = N_BATCH


class CompareWorker:
    """Answers about one model."""

    def __init__(self) -> None:
        self._model: PeerModel | None = None
        self._context: PeerContext | None = None

    def answer(self, question: Answer) -> Answer:
        operation = getattr(self, f"op_{question.pop('op')}")
        result: Answer = operation(**question)
        return result

    def op_load(self, model: str) -> Answer:
        self._context = self._model = None
        self._model = PeerModel(model, 0)
        self._context = self._model.context(N_CTX, flash=False)
        return {}

    def op_tokenize(self, text: str) -> Answer:
        assert self._model is not None
        return {"tokens": self._model.tokenize(text)}

    def op_continue(self, tokens: list[int], n: int) -> Answer:
        """``n`` greedy tokens, with the gap between the two highest logits of each."""
        context = self._cleared()
        context.decode([tokens])
        chosen: list[int] = []
        gaps: list[float] = []
        for _ in range(n):
            logits = context.logits()
            best = np.argpartition(logits, -2)[-2:]
            low, high = best[np.argsort(logits[best])]
            chosen.append(int(high))
            gaps.append(float(logits[high] - logits[low]))
            context.decode([[int(high)]])
        return {"tokens": chosen, "gaps": gaps}

    def op_score(self, tokens: list[int]) -> Answer:
        """The log-probability of every token but the first, given those before it."""
        context = self._cleared()
        context.decode([tokens], all_logits=True)
        scores = [float(logprobs(context.logits(i))[t]) for i, t in enumerate(tokens[1:])]
        return {"logprobs": scores}

    def op_expect(self, tokens: list[int], n: int, wanted: list[list[int]] | None) -> Answer:
        """op_score, and for each of these tokens the log-probabilities of the ``n`` likeliest in
        its place, or of those that are ``wanted`` there: [token, log-probability]."""
        context = self._cleared()
        context.decode([tokens], all_logits=True)
        rows, scores = [], []
        for i, token in enumerate(tokens[1:]):
            row = logprobs(context.logits(i))
            ids = np.argpartition(row, -n)[-n:] if wanted is None else np.array(wanted[i])
            rows.append(list(zip(ids.tolist(), row[ids].tolist(), strict=True)))
            scores.append(float(row[token]))
        return {"rows": rows, "logprobs": scores}

    def _cleared(self) -> PeerContext:
        assert self._context is not None, "load comes first"
        self._context.clear()
        return self._context


def logprobs(logits: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    shifted = logits.astype(np.float64) - float(logits.max())
    found: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum())
    return found


if __name__ == "__main__":
    answer_lines(CompareWorker().answer)
