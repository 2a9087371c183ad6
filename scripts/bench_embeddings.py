"""bench.py --embed: prompts that embeddings are made of, as many together as a client sends.

Both sides get all of a measurement's prompts at once: ours as so many requests, llama.cpp as the
sequences of a batch. What is measured ends with the vectors of all of them.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from bench_report import Row

SIZES = ((64, 16), (16, 128), (4, 500))  # prompts, and tokens of each
FIRST = 300  # token id: those before are special ones and bytes
SETTLE_SECONDS = 0.3

Ask = Callable[..., dict[str, Any]]


def measure(ours: Ask, peer: Ask | None, n_vocab: int, repeat: int) -> list[Row]:
    """Tokens per second of each of SIZES, who is measured taking turns."""
    rng, rows = np.random.default_rng(1), list[Row]()
    for n, length in SIZES:
        row = Row(f"embed {n} x {length} tokens", "tok/s")
        for i in range(repeat + 1):
            prompts = rng.integers(min(FIRST, n_vocab // 4), n_vocab // 2, (n, length)).tolist()
            for ask, values in ((ours, row.ours), (peer, row.peer)):
                if ask is None:
                    continue
                time.sleep(SETTLE_SECONDS)
                found = ask("embed", prompts=prompts)["value"]
                values += [found] * (i > 0)  # the first is not timed
        rows.append(row)
    return rows
