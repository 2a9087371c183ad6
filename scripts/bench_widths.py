"""bench.py --widths: what a step costs by how many tokens it computes.

Of one sequence, with the logits of all tokens wanted, as when drafts are verified; and of as many
streams, a token each. How many drafts pay, and how many streams, follows from the ratios to one
token. All widths take turns, a few steps at a time, so that what else happens on the machine meets
all of them; the best time of each is what it costs, the median says how quiet it was.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from gguf_serve.engine.forward.batch import OutputRow
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.request import Request
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.kernels.attention.kv import PAGE
from gguf_serve.kernels.profile import touch_pages

WIDTHS = (1, 2, 3, 4, 6, 8, 16, 32)
DEPTH = 64  # tokens before those of the step
STEPS_A_TURN = 3
TOKEN, K = 1, 40  # which token does not matter; as many candidates as samplers usually want

Times = Mapping["Width", Sequence[float]]


@dataclass(frozen=True, slots=True, order=True)
class Width:
    """A step of so many tokens, of one sequence or of as many ``streams``."""

    tokens: int
    streams: bool = False

    def inputs(self, depth: int) -> tuple[list[Chunk], list[OutputRow]]:
        """What Runner.forward computes, each stream in a slot and pages of its own."""
        count = 1 if self.streams else self.tokens
        n_pages = -(-(depth + count) // PAGE)
        chunks = []
        for slot in range(self.tokens if self.streams else 1):
            seq = RunningSequence.from_request(slot, Request((TOKEN,) * (depth + count)))
            seq.slot, seq.table = slot, list(range(slot * n_pages, (slot + 1) * n_pages))
            chunks.append(Chunk(seq, depth, count, "all"))
        rows = [OutputRow(chunk, depth + i, K) for chunk in chunks for i in range(count)]
        return chunks, rows


def measure(
    runner: Runner, widths: Sequence[int], depth: int, seconds: float
) -> dict[Width, list[float]]:
    """Seconds of steps of each width after ``depth`` tokens, in turns for so long at least.

    Writes to pages of the KV cache, from the first on.
    """
    steps = [Width(n, streams) for n in widths for streams in (False, True)]
    inputs = {step: step.inputs(depth) for step in steps}
    _touch(runner, max((chunks for chunks, _ in inputs.values()), key=len))
    for chunks, rows in inputs.values():  # records what is not recorded yet
        runner.forward(chunks, (), rows)
    times: dict[Width, list[float]] = {step: [] for step in steps}
    end = time.perf_counter() + seconds
    while not times[steps[-1]] or time.perf_counter() < end:
        for step, (chunks, rows) in inputs.items():
            for _ in range(STEPS_A_TURN):
                start = time.perf_counter()
                runner.forward(chunks, (), rows)
                times[step].append(time.perf_counter() - start)
    return times


def _touch(runner: Runner, chunks: Sequence[Chunk]) -> None:
    n_pages = max(page for chunk in chunks for page in chunk.seq.table) + 1
    recording, _ = runner.prepare(*Width(1).inputs(0))
    for at, tape in recording.tapes:
        touch_pages(tape.device, runner.pages[at], n_pages)


def cells(times: Times) -> list[list[str]]:
    """A table, its head first: milliseconds, the best and the median, and the best in relation to
    one token's."""
    head = ["tokens", "one sequence, ms", "of one token", "as many streams, ms", "of one token"]
    one = min(times[Width(1)])
    table = [head]
    for tokens in dict.fromkeys(step.tokens for step in times):
        row = [str(tokens)]
        for streams in (False, True):
            found = times[Width(tokens, streams)]
            best = min(found)
            row += [f"{1e3 * best:.1f} ({1e3 * median(found):.1f})", f"{best / one:.2f}"]
        table.append(row)
    return table


def as_json(times: Times) -> list[dict[str, Any]]:
    """Every number."""
    return [
        {"tokens": step.tokens, "streams": step.streams, "seconds": list(found)}
        for step, found in times.items()
    ]
