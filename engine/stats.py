"""What the engine counts and what its slots do, for /metrics and /slots.

``Counters`` belongs to the engine's thread. ``EngineStats`` and ``SlotState`` are snapshots that
any thread may keep.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection
from typing import TYPE_CHECKING, Literal

from msgspec import Struct, field

from gguf_serve.engine.request import Request, Timings

if TYPE_CHECKING:
    from gguf_serve.engine.completion.stream import Stream
    from gguf_serve.engine.scheduling.scheduler import Scheduler
    from gguf_serve.engine.scheduling.sequence import Plan


WAITS = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0, float("inf"))  # seconds


class Counters(Struct):
    """Totals since the start."""

    n_prompt_tokens: int = 0
    prompt_seconds: float = 0.0
    n_generated_tokens: int = 0
    generation_seconds: float = 0.0
    drafts: list[int] = field(default_factory=lambda: [0, 0, 0])  # guesses, their tokens, right
    n_decodes: int = 0
    n_busy_slots: int = 0
    n_tokens_max: int = 0
    wait_seconds: float = 0.0
    waits: list[int] = field(default_factory=lambda: [0] * len(WAITS))

    def note_wait(self, seconds: float) -> None:
        """A request has got its slot."""
        self.wait_seconds += seconds
        self.waits[bisect_left(WAITS, seconds)] += 1

    def note_forward(self, plan: Plan, n_running: int) -> None:
        self.n_decodes += 1
        self.n_busy_slots += n_running
        longest = max([chunk.start + chunk.count for chunk in plan.chunks])
        self.n_tokens_max = max(self.n_tokens_max, longest)

    def note_prompt(self, timings: Timings) -> None:
        """A prompt is computed."""
        self.n_prompt_tokens += timings.prompt_n
        self.prompt_seconds += timings.prompt_ms / 1e3

    def note_generation(self, timings: Timings) -> None:
        """A request has ended."""
        self.n_generated_tokens += timings.predicted_n
        self.generation_seconds += timings.predicted_ms / 1e3
        drafts = timings.drafts
        for i, n in enumerate((drafts.n, drafts.n_tokens, drafts.n_accepted)):
            self.drafts[i] += n


class DiskStats(Struct, frozen=True, kw_only=True):
    """The cache on disk, or in the host's memory, at one moment; a folder's size and files are as
    of the last writing."""

    place: Literal["disk", "ram"] = "disk"
    n_bytes: int
    n_files: int
    n_hit_tokens: int  # loaded, in all
    load_seconds: float  # that loading them took
    n_written: int  # files, by this server
    n_evicted: int
    n_corrupt: int  # found damaged, and deleted


class ReplicaStats(Struct, frozen=True, kw_only=True):
    """Of a front, whose engines are elsewhere."""

    n_engines: int  # that take requests now
    n_lost: int  # engines that were gone, since the start
    n_moved: int  # requests that went on at another engine
    routed: tuple[tuple[str, str, int], ...]  # why, to which engine ("": gone), how many requests


class EngineStats(Struct, frozen=True, kw_only=True):
    """The engine at one moment; behind each field the name of llama-server's metric.

    Totals count since the start: prompts when they are computed, cached tokens left out, and
    generated tokens when their request ends; seconds are those that requests took, so that
    requests side by side may sum to more than has passed.
    """

    n_prompt_tokens: int  # prompt_tokens_total
    prompt_seconds: float  # prompt_seconds_total
    n_generated_tokens: int  # tokens_predicted_total
    generation_seconds: float  # tokens_predicted_seconds_total
    n_decodes: int  # n_decode_total: forwards
    n_busy_slots: int  # n_busy_slots_per_decode times n_decode_total
    n_tokens_max: int  # n_tokens_max: the longest sequence so far
    n_processing: int  # requests_processing
    n_deferred: int  # requests_deferred: waiting for a slot, or paused
    n_paused: int = 0  # of those deferred: with a slot, but without room
    wait_seconds: float = 0.0  # that requests waited for their slots, in all
    waits: tuple[int, ...] = (0,) * len(WAITS)  # how many waited no longer than each of WAITS,
    # and longer than the one before it
    n_slots: int
    n_preempted: int  # times that a sequence was paused because pages ran out
    n_cached_tokens: int  # prompt tokens that were found in the cache, in all
    page_size: int  # tokens
    n_pages: int
    n_pages_used: int  # that running sequences hold
    n_pages_cached: int  # with computed tokens, to be had when room is needed
    n_checkpoints: int = 0  # copies of states in the host's memory
    checkpoint_bytes: int = 0  # of all of them, at most
    disk: DiskStats | None = None  # None: there is no cache on disk
    replicas: ReplicaStats | None = None  # None: one engine, in this process
    n_drafts: int = 0  # spec_decode_num_drafts: guesses that were verified
    n_drafted: int = 0  # spec_decode_num_draft_tokens: their tokens
    n_accepted: int = 0  # spec_decode_num_accepted_tokens: those that were right

    @property
    def kv_cache_usage_ratio(self) -> float:
        """Share of the KV cache that running sequences hold; 1: full."""
        return self.n_pages_used / self.n_pages

    @property
    def kv_cache_tokens(self) -> int:
        """Room of the pages that running sequences hold, in tokens."""
        return self.n_pages_used * self.page_size


def engine_stats(
    counters: Counters, scheduler: Scheduler, n_posted: int, disk: DiskStats | None = None
) -> EngineStats:
    """``n_posted``: requests that the scheduler has not seen yet."""
    pages = scheduler.cache.stats()
    return EngineStats(
        n_prompt_tokens=counters.n_prompt_tokens,
        prompt_seconds=counters.prompt_seconds,
        n_generated_tokens=counters.n_generated_tokens,
        generation_seconds=counters.generation_seconds,
        n_decodes=counters.n_decodes,
        n_busy_slots=counters.n_busy_slots,
        n_tokens_max=counters.n_tokens_max,
        n_processing=len(scheduler.running),
        n_deferred=len(scheduler.waiting) + n_posted,
        n_paused=scheduler.waiting.n_paused,
        wait_seconds=counters.wait_seconds,
        waits=tuple(counters.waits),
        n_slots=len(scheduler.slots),
        n_preempted=scheduler.n_preempted,
        n_cached_tokens=pages.n_hit_tokens,
        page_size=scheduler.cache.page_size,
        n_pages=scheduler.cache.n_pages,
        n_pages_used=pages.n_used,
        n_pages_cached=pages.n_cached,
        n_checkpoints=len(scheduler.checkpoints or ()),
        checkpoint_bytes=scheduler.checkpoints.n_bytes if scheduler.checkpoints else 0,
        disk=disk,
        replicas=None,
        **dict(zip(("n_drafts", "n_drafted", "n_accepted"), counters.drafts, strict=True)),
    )


class SlotState(Struct, frozen=True, kw_only=True):
    """A slot at one moment: its request, or the last one that it served.

    A slot that has served none has ``request`` None, and the numbers that follow are 0.
    """

    id: int
    n_ctx: int
    is_processing: bool
    request: Request | None = None  # its parameters are llama-server's ``params``
    id_task: int = -1  # counts the engine's requests
    n_prompt: int = 0  # n_prompt_tokens
    n_processed: int = 0  # n_prompt_tokens_processed: computed, cached ones left out
    n_cached: int = 0  # n_prompt_tokens_cache
    n_decoded: int = 0  # generated tokens
    n_remain: int = -1  # tokens to come at most; -1: no limit
    has_next_token: bool = False
    has_new_line: bool = False
    guesses: bool = False  # its tokens may be guessed, several to be verified at once


class SlotFile(Struct, frozen=True):
    """A slot's content that went to a file or came from one."""

    n_tokens: int
    n_bytes: int  # of the file
    seconds: float


def slot_states(scheduler: Scheduler, last: Collection[Stream | None]) -> list[SlotState]:
    """``last``: each slot's latest stream."""
    pairs = zip(scheduler.slots, last, strict=True)
    return [
        SlotState(id=i, n_ctx=scheduler.n_ctx, is_processing=False)
        if stream is None
        else _slot_state(i, scheduler.n_ctx, holder is stream.seq, stream)
        for i, (holder, stream) in enumerate(pairs)
    ]


def _slot_state(id: int, n_ctx: int, is_processing: bool, stream: Stream) -> SlotState:
    seq, request = stream.seq, stream.request
    n_decoded, most = seq.n_generated, request.max_tokens
    n_computed = seq.n_computed if is_processing else seq.n_prompt
    return SlotState(
        id=id, n_ctx=n_ctx, is_processing=is_processing, request=request, id_task=seq.id,
        n_prompt=seq.n_prompt, n_cached=seq.n_cached,
        n_processed=max(0, min(n_computed, seq.n_prompt) - seq.n_cached),
        n_decoded=n_decoded, n_remain=max(0, most - n_decoded) if most >= 0 else -1,
        has_next_token=is_processing, has_new_line=stream.has_new_line,
        guesses=stream.proposals is not None,
    )  # fmt: skip
