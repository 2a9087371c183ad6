"""A scheduler, requests for it, and steps without a device."""

from __future__ import annotations

from gguf_serve.engine.request import Request
from gguf_serve.engine.scheduling.checkpoints import Checkpoints
from gguf_serve.engine.scheduling.page_cache import PageCache
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Sequence

SIZE = 4  # tokens of a page
ids = iter(range(10**9))


def make(n_pages=32, *, n_slots=4, n_ctx=64, n_batch=64, n_ubatch=16, **more):
    cache = PageCache(n_pages, SIZE)
    return Scheduler(
        cache, n_slots=n_slots, n_ctx_slot=n_ctx, n_batch=n_batch, n_ubatch=n_ubatch, **more
    )


def kept(n_copies=8, min_step=100, **more):
    """A scheduler for a model with a state beside pages."""
    return make(checkpoints=Checkpoints(n_copies, min_step), **more)


def add(scheduler, prompt, salt=None, **fields):
    seq = Sequence.from_request(next(ids), Request(tuple(prompt), **fields), salt)
    scheduler.add(seq)
    return seq


def step(scheduler, token=0):
    """Plan, forward, and a token for each sequence that is due one."""
    plan = scheduler.plan()
    if plan is not None:
        scheduler.advance(plan)
        for chunk in plan.chunks:
            if chunk.is_final and chunk.seq.request.max_tokens != 0:
                scheduler.append(chunk.seq, token)
    return plan


def run_prompt(scheduler, seq):
    while seq.n_pending or seq.state != "running":
        assert step(scheduler) is not None
    scheduler.finish(seq)


def run_to_end(scheduler, seq, n_tokens=1):
    """The plans until the sequence has generated so many tokens and is finished."""
    plans = []
    while seq.n_generated < n_tokens:
        plans.append(step(scheduler))
    scheduler.finish(seq)
    return plans


def shares(plan):
    return [(chunk.seq.id, chunk.start, chunk.count, chunk.outputs) for chunk in plan.chunks]
