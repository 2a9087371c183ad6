"""The peer's worker for bench_speculation.py: llama-cpp-python with its prompt lookup.

Started with the interpreter that has it.
"""

from __future__ import annotations

import os
import time
from typing import Any

from llama_cpp import Llama
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding
from peer_process import Answer, answer_lines


class PeerSubject:
    """A model without prompt lookup, and the same with it: the latter keeps all logits."""

    def __init__(self) -> None:
        self._plain: Any = None
        self._looking: Any = None

    def answer(self, question: Answer) -> Answer:
        operation = getattr(self, f"op_{question.pop('op')}")
        result: Answer = operation(**question)
        return result

    def op_load(self, model: str, n_ctx: int) -> Answer:
        asked = {
            "model_path": model, "n_ctx": n_ctx, "n_threads": len(os.sched_getaffinity(0)),
            "flash_attn": True, "verbose": False,
        }  # fmt: skip
        self._plain = Llama(**asked)
        # Without logits_all it has no room for the logits of more tokens than a batch.
        lookup = LlamaPromptLookupDecoding()
        self._looking = Llama(**asked, draft_model=lookup, logits_all=True)
        return {}

    def op_generate(self, tokens: list[int], n: int, size: int = 0, most: int = 0) -> Answer:
        """Milliseconds a token from the first one to the n-th."""
        model = self._looking if size else self._plain
        if size:
            model.draft_model = LlamaPromptLookupDecoding(size, most)
        model.reset()
        answer = model.generate(tokens, temp=0.0)
        next(answer)
        began = time.perf_counter()
        for _ in range(n - 1):
            next(answer)
        return {"value": 1e3 * (time.perf_counter() - began) / max(n - 1, 1)}


if __name__ == "__main__":
    answer_lines(PeerSubject().answer)
