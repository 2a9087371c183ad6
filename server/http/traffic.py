"""How long requests take and how much each key asks for, for /metrics and --limits.

Times are taken where events reach the event loop, which is what a client sees but for the network.
They outlive the engine: a model that sleeps and wakes goes on counting.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Sequence

from msgspec import Struct, field

from gguf_serve.engine.request import Delta, Event, Failed, Finished, Sound, Started

MOST_KEYS = 1024  # of which counters are kept
Clock = Callable[[], float]

# Seconds; vLLM's buckets, so that its dashboards fit.
FIRST = (0.001, 0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5,
         10.0, 20.0, 40.0, 80.0, 160.0, 640.0, 2560.0)  # fmt: skip
BETWEEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0,
           20.0, 40.0, 80.0)  # fmt: skip
WHOLE = (0.3, 0.5, 0.8, 1.0, 1.5, 2.0, 2.5, 5.0, 10.0, 15.0, 20.0, 30.0, 40.0, 50.0, 60.0, 120.0,
         240.0, 480.0, 960.0, 1920.0, 7680.0)  # fmt: skip
REASONS = {"eos": "stop", "word": "stop", "limit": "length", "cancelled": "abort"}


class Histogram:
    """How many values were at most each of ``bounds`` and above the one before it."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # the last: above all
        self.total = 0.0

    def observe(self, value: float, n: int = 1) -> None:
        """A value, ``n`` times."""
        self.counts[bisect_left(self.bounds, value)] += n
        self.total += value * n


def first_token() -> Histogram:
    return Histogram(FIRST)


def between_tokens() -> Histogram:
    return Histogram(BETWEEN)


def whole_request() -> Histogram:
    return Histogram(WHOLE)


class Usage(Struct):
    """Of one key, since the start."""

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0


class Traffic(Struct):
    """Used by the event loop alone."""

    by_key: bool = False  # whether clients are keys; of addresses nothing is counted
    clock: Clock = time.perf_counter
    first: Histogram = field(default_factory=first_token)
    between: Histogram = field(default_factory=between_tokens)
    queue: Histogram = field(default_factory=whole_request)
    prompt: Histogram = field(default_factory=whole_request)
    decode: Histogram = field(default_factory=whole_request)
    whole: Histogram = field(default_factory=whole_request)
    ended: Counter[str] = field(default_factory=Counter)  # requests, by why they have
    keys: dict[str, Usage] = field(default_factory=dict)
    on_tokens: Callable[[str, int], None] = lambda client, n: None  # prompts', and generated ones

    def usage(self, client: str) -> Usage | None:
        """None where nothing is counted of it."""
        if not self.by_key or (client not in self.keys and len(self.keys) >= MOST_KEYS):
            return None
        return self.keys.setdefault(client, Usage())


class Watch:
    """The requests to the engine of one HTTP request, by their numbers."""

    def __init__(self, traffic: Traffic, client: str) -> None:
        self._traffic, self._client = traffic, client
        self._times: dict[int, _Times] = {}

    def submitted(self, index: int) -> None:
        self._times[index] = _Times(self._traffic.clock())
        usage = self._traffic.usage(self._client)
        if usage is not None:
            usage.requests += 1

    def take(self, index: int, event: Event) -> None:
        times = self._times.get(index)
        if times is None:
            return
        now, traffic = self._traffic.clock(), self._traffic
        if isinstance(event, Delta):
            self._count(len(event.tokens), is_prompt=False)
            if times.first is None:
                times.first = now
                traffic.first.observe(now - times.submitted)
            elif event.tokens:
                n_tokens = len(event.tokens)
                traffic.between.observe((now - times.last) / n_tokens, n_tokens)
            times.last = now
        elif isinstance(event, Sound):
            times.is_sound = True
            if times.first is None:
                times.first = now
                traffic.first.observe(now - times.submitted)
        elif isinstance(event, Started):
            times.started = now
            traffic.queue.observe(now - times.submitted)
            self._count(event.n_prompt, is_prompt=True)
        elif isinstance(event, Finished | Failed):
            self._end(self._times.pop(index), event, now)

    def _end(self, times: _Times, event: Finished | Failed, now: float) -> None:
        traffic = self._traffic
        reason = REASONS[event.reason] if isinstance(event, Finished) else "error"
        traffic.ended[reason] += 1
        if times.is_sound and isinstance(event, Finished):
            self._count(event.timings.predicted_n, is_prompt=False)
        if reason in ("abort", "error") or times.started is None:
            return
        traffic.whole.observe(now - times.submitted)
        traffic.prompt.observe((times.first or now) - times.started)
        if times.first is not None:
            traffic.decode.observe(now - times.first)

    def _count(self, n_tokens: int, is_prompt: bool) -> None:
        self._traffic.on_tokens(self._client, n_tokens)
        usage = self._traffic.usage(self._client)
        if usage is not None and is_prompt:
            usage.prompt_tokens += n_tokens
        elif usage is not None:
            usage.generated_tokens += n_tokens


class _Times(Struct):
    submitted: float
    started: float | None = None
    first: float | None = None
    last: float = 0.0  # when the latest token has come
    is_sound: bool = False  # whose tokens are told at its end
