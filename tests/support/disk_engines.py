"""Engines with a cache on disk, and what tests of it ask of them."""

from __future__ import annotations

import time
from collections.abc import Callable

from asking import SECONDS, Reply, ask, random_prompt

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.stats import DiskStats

OPTIONS = EngineOptions(
    n_ctx=1024, n_parallel=2, n_ubatch=64, n_gpu_layers=0, kernel_family="simd",
    cache_disk_min_tokens=64,
)  # fmt: skip
N_TOKENS = 330  # ten full pages and the beginning of one
N_PAGES = 10

Start = Callable[..., Engine]


def disk(engine: Engine) -> DiskStats:
    stats = engine.stats().disk
    assert stats is not None
    return stats


def wait_for(engine: Engine, n_written: int) -> None:
    """Until it has written so many files."""
    end = time.monotonic() + SECONDS
    while disk(engine).n_written < n_written:
        assert time.monotonic() < end, f"{disk(engine).n_written} files, not {n_written}"
        time.sleep(0.01)
    assert disk(engine).n_written == n_written


def forget(engine: Engine, *prompts: list[int]) -> None:
    engine._scheduler.cache.clear()
    if engine._scheduler.checkpoints is not None:
        for prompt in prompts:
            engine._scheduler.checkpoints.forget(prompt, None, 0)


def kept(engine: Engine, seed: int) -> list[int]:
    """A prompt that has been computed and is in the folder, and not in memory any more."""
    prompt, n = random_prompt(N_TOKENS, seed), disk(engine).n_written
    ask(engine, prompt, 1)
    wait_for(engine, n + N_PAGES)
    forget(engine)
    return prompt


def scores(reply: Reply) -> list[object]:
    return [(score.id, score.logprob, score.top) for score in reply.scores]
