"""What a launch has to read and multiply, to hold its time against the device's limits."""

from __future__ import annotations

from collections.abc import Sequence

from msgspec import Struct

Spans = Sequence[tuple[int, int]]  # each sequence of a step: its first position, its tokens


class Work(Struct, frozen=True):
    """The least that a launch must do, however its kernel goes about it.

    weight_bytes: read once for all tokens. macs: multiply-adds of one of counts[count].
    key_bytes: of a key and its value, read once per sequence. pair_macs: multiply-adds of a
    query with one key. window: keys that a query sees, 0 for all.
    """

    weight_bytes: int = 0
    macs: int = 0
    count: int = 0
    key_bytes: int = 0
    pair_macs: int = 0
    window: int = 0

    def kv_bytes(self, spans: Spans) -> int:
        """Bytes of KV cache that a step of these sequences reads."""
        seen = (min(at + n, self.window + n - 1) if self.window else at + n for at, n in spans)
        return self.key_bytes * sum(seen) if self.key_bytes else 0

    def multiply_adds(self, counts: Sequence[int], spans: Spans) -> int:
        """Multiply-adds of a step with these counts (tape.py) and sequences."""
        total = self.macs * counts[self.count]
        if self.pair_macs:
            ends = (end for at, n in spans for end in range(at + 1, at + n + 1))
            total += self.pair_macs * sum(min(end, self.window or end) for end in ends)
        return total


NO_WORK = Work()
