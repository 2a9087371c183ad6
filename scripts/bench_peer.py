"""The peer's worker for bench.py: measures llama.cpp, asked by JSON lines.

Started by bench.py with the interpreter that has llama-cpp-python. The operations are those
of bench_engine.EngineSubject, with the same meanings.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import llama_cpp
from peer_model import PeerContext, PeerModel
from peer_process import Answer, answer_lines


class PeerSubject:
    """llama.cpp with a model loaded, answering one measurement at a time."""

    def __init__(self) -> None:
        self._model: PeerModel | None = None
        self._contexts: dict[int, PeerContext] = {}  # by the number of sequences
        self._n_ctx = 0
        self._kept: list[int] = []  # the prompt whose KV is in the context of one sequence

    def answer(self, question: Answer) -> Answer:
        operation = getattr(self, f"op_{question.pop('op')}")
        result: Answer = operation(**question)
        return result

    def op_load(self, model: str, n_ctx: int, n_threads: int) -> Answer:
        start = time.perf_counter()
        self._n_ctx = n_ctx
        self._model = PeerModel(model, n_threads)
        self._context(1)
        version = f"llama-cpp-python {llama_cpp.__version__}"
        system = llama_cpp.llama_print_system_info().decode()
        return {"value": time.perf_counter() - start, "version": version, "system": system}

    @property
    def _loaded(self) -> PeerModel:
        assert self._model is not None, "load comes first"
        return self._model

    def _context(self, n_sequences: int, n_ctx: int = 0) -> PeerContext:
        if n_sequences not in self._contexts:
            made = self._loaded.context(n_ctx or self._n_ctx, n_sequences)
            self._contexts[n_sequences] = made
        return self._contexts[n_sequences]

    def op_prompt(self, tokens: list[int]) -> Answer:
        """Tokens per second of a prompt, up to its first generated token, and that time."""
        context = self._context(1)
        context.clear()
        self._kept = []
        start = time.perf_counter()
        context.decode([tokens])
        context.greedy()
        seconds = time.perf_counter() - start
        return {"value": len(tokens) / seconds, "first_token": seconds}

    def op_generate(self, tokens: list[int], n: int) -> Answer:
        """Tokens per second from the first generated token to the n-th."""
        context = self._context(1)
        if self._kept and self._kept == tokens and context.keep(len(tokens) - 1):
            context.decode([tokens[-1:]])
        else:
            context.clear()
            context.decode([tokens])
            # A window's keys are overwritten, so that nothing can be taken back.
            self._kept = [] if self._loaded.has_window else tokens
        token = context.greedy()
        start = time.perf_counter()
        for _ in range(n - 1):
            context.decode([[token]])
            token = context.greedy()
        return {"value": (n - 1) / (time.perf_counter() - start)}

    def op_streams(self, prompts: list[list[int]], n: int) -> Answer:
        """Tokens per second of all streams together, while all of them generate."""
        rows = range(len(prompts))
        context = self._context(len(prompts), len(prompts[0]) + n + 8)
        context.clear()
        tokens = []
        context.decode(prompts)
        ends = [sum(map(len, prompts[: i + 1])) - 1 for i in rows]
        tokens = [context.greedy(end) for end in ends]
        start = time.perf_counter()
        for _ in range(n - 1):
            context.decode([[token] for token in tokens])
            tokens = [context.greedy(row) for row in rows]
        return {"value": len(prompts) * (n - 1) / (time.perf_counter() - start)}

    def op_embed(self, prompts: list[list[int]]) -> Answer:
        """Tokens per second until there are vectors of all prompts, in one batch."""
        n = len(prompts)
        if n not in self._contexts:
            self._contexts[n] = self._loaded.context(len(prompts[0]), n, embeddings=True)
        context = self._contexts[n]
        context.clear()
        start = time.perf_counter()
        context.decode(prompts, all_logits=True)
        for sequence in range(n):
            context.embedding(sequence)
        return {"value": sum(map(len, prompts)) / (time.perf_counter() - start)}

    def op_memory(self) -> Answer:
        """Peak resident memory of this process in MiB."""
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        peak: Any = next(line.split()[1] for line in lines if line.startswith("VmHWM"))
        return {"value": int(peak) / 1024}


if __name__ == "__main__":
    answer_lines(PeerSubject().answer)
