"""Our side of compare_peer.py: greedy choices and scores of the engine."""

from __future__ import annotations

from pathlib import Path

from bench_engine import GREEDY, Run

from gguf_serve.engine.engine import load_engine
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Event, PromptScored, Request, Scoring, TokenScore

N_CTX = 2048


class CompareEngine:
    """A loaded engine that answers one question at a time."""

    def __init__(
        self, model: Path, device: str | None, family: str | None, activation_type: str
    ) -> None:
        self._engine = load_engine(
            model,
            EngineOptions(
                n_ctx=N_CTX, device=device, kernel_family=family, activation_type=activation_type
            ),
        )
        self.adds_bos = self._engine.tokenizer.add_bos

    def close(self) -> None:
        self._engine.close()

    def encode(self, text: str) -> list[int]:
        ids: list[int] = self._engine.tokenizer.encode(text, add_special=True, parse_special=False)
        return ids

    def greedy(self, prompt: list[int], n: int) -> list[int]:
        run = Run(Request(tuple(prompt), GREEDY, max_tokens=n))
        self._engine.submit(run.request, run.on_event)
        run.done.wait()
        if run.failure:
            raise RuntimeError(run.failure)
        return run.tokens

    def likeliest(self, tokens: list[int]) -> list[int]:
        """For every token but the first, the likeliest one in its place."""
        return [score.top[0][0] for score in self.scores(tokens, n_top=1)]

    def logprobs(self, tokens: list[int]) -> list[float]:
        """The log-probability of every token but the first."""
        return [score.logprob for score in self.scores(tokens, n_top=0)]

    def scores(self, tokens: list[int], n_top: int) -> list[TokenScore]:
        """Of every token but the first, with the likeliest in its place."""
        scores: list[TokenScore | None] = []
        run = Run(Request(tuple(tokens), GREEDY, max_tokens=0, wants=Scoring(n_top)))

        def on_event(event: Event) -> None:
            if isinstance(event, PromptScored):
                scores.extend(event.scores)
            run.on_event(event)

        self._engine.submit(run.request, on_event)
        run.done.wait()
        if run.failure:
            raise RuntimeError(run.failure)
        known = [score for score in scores if score is not None]
        if len(known) != len(tokens) - 1:
            raise RuntimeError(f"{len(known)} scores for {len(tokens)} tokens")
        return known
