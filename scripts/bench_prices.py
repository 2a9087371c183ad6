"""bench_speculation.py --prices: what guesses by a model would bring, by how often they are right.

Of weights that were drawn, no guess says anything; but what a guess of n tokens takes, and what it
takes to verify them, can be measured. With a share of tokens that are right the rest is arithmetic:
a step that verifies n tokens, each right with the chance a, brings 1 + a + ... + a^n.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from bench_widths import DEPTH, Width, measure

from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.speculation.model_drafter import ModelDrafter

SHARES = (0.5, 0.6, 0.7, 0.8, 0.9)
WIDTHS = (1, 2, 3, 4, 5, 6, 8)


@dataclass(frozen=True, slots=True)
class Price:
    """Seconds for ``n`` guessed tokens: to guess them, and of a step that verifies them."""

    n: int
    guessed: float
    verified: float

    def gain(self, share: float, alone: float) -> float:
        """How many times faster than steps of one token, ``alone`` seconds each, where this share
        of tokens is right."""
        brought = sum(share**i for i in range(self.n + 1))
        return brought * alone / (self.guessed + self.verified)


def prices(runner: Runner, drafter: ModelDrafter, seconds: float) -> tuple[float, list[Price]]:
    """The seconds of a step of one token, and of guesses up to the drafter's longest.

    Writes to pages of the KV cache. What a draft model has to read are the tokens that have come
    since its last guess: one, if none was right.
    """
    widths = [n for n in WIDTHS if n <= drafter.most + 1]
    times = measure(runner, widths, DEPTH, seconds)
    best = {n: min(times[Width(n)]) for n in widths}
    found = [Price(n - 1, drafter.seconds(1, 1, n - 1), best[n]) for n in widths if n > 1]
    return best[1], found


def table(alone: float, found: Sequence[Price]) -> list[str]:
    """Lines: milliseconds, and gains by the share of tokens that are right."""
    head = f"one token {1e3 * alone:.1f} ms\ntokens  guessed verified  gain if right: "
    lines = [head + "  ".join(f"{share:4.0%}" for share in SHARES)]
    for price in found:
        ms = f"{1e3 * price.guessed:8.1f} {1e3 * price.verified:8.1f}"
        gains = "  ".join(f"{price.gain(share, alone):4.2f}" for share in SHARES)
        lines.append(f"{price.n:6} {ms}{'':17}{gains}")
    return lines
