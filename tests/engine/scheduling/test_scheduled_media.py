"""Images and sounds in the scheduler: what waits for its embeddings, and what of it is lost."""

from __future__ import annotations

import numpy as np

from gguf_serve.engine.media.span import MediaSpan
from gguf_serve.engine.request import Request
from gguf_serve.engine.scheduling.checkpoints import Checkpoints
from gguf_serve.engine.scheduling.page_cache import PageCache
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Sequence

SIZE = 4


def make(n_pages: int = 8, **more: object) -> Scheduler:
    cache = PageCache(n_pages, SIZE)
    return Scheduler(cache, n_slots=4, n_ctx_slot=32, n_batch=16, n_ubatch=16, **more)  # type: ignore[arg-type]


def picture(start: int, count: int, together: bool = False) -> MediaSpan:
    return MediaSpan(start, count, b"key", np.zeros((2, 2, 3)), (count, 1), together)


def add(scheduler: Scheduler, id: int, prompt: list[int], *media: MediaSpan) -> Sequence:
    seq = Sequence.from_request(id, Request(tuple(prompt), media=media))
    scheduler.add(seq)
    return seq


def step(scheduler: Scheduler) -> list[tuple[int, int, int]]:
    """A step with a token for those that are due one: its shares (id, start, count)."""
    plan = scheduler.plan()
    assert plan is not None
    scheduler.advance(plan)
    for chunk in plan.chunks:
        if chunk.is_final:
            scheduler.append(chunk.seq, 0)
    return [(chunk.seq.id, chunk.start, chunk.count) for chunk in plan.chunks]


def paused_before_its_image(**more: object) -> tuple[Scheduler, Sequence]:
    """A sequence of 8 tokens, an image and one token that was paused before the image."""
    scheduler = make(**more)
    older = add(scheduler, 0, list(range(8)))
    step(scheduler)
    seq = add(scheduler, 1, [*range(20, 28), -1, -2, -3, -4, 28], picture(8, 4))
    while seq.state != "waiting" or not scheduler.n_preempted:
        step(scheduler)
    scheduler.finish(older)
    return scheduler, seq


def test_a_state_comes_back_for_one_that_waits_for_an_image() -> None:
    scheduler, seq = paused_before_its_image(checkpoints=Checkpoints(8, 100))
    plan = scheduler.plan()
    assert plan is not None
    assert (plan.chunks, plan.started) == ([], [])
    assert [(copy.slot, copy.position) for copy in plan.restores] == [(1, 8)]
    assert seq.n_computed == 8
    assert scheduler.plan() is None  # until the image is there
    seq.embeddings[0] = np.zeros((4, 1))
    assert step(scheduler) == [(1, 8, 5)]


def test_a_last_token_without_its_embedding_is_in_no_step() -> None:
    scheduler = make()
    seq = add(scheduler, 0, [*range(4), -1], picture(4, 1))
    assert step(scheduler) == [(0, 0, 4)]
    other = add(scheduler, 1, [9, 8])
    assert step(scheduler) == [(1, 0, 2)]
    seq.embeddings[0] = np.zeros((1, 1))
    assert step(scheduler) == [(0, 4, 1), (1, 2, 1)]
    assert other.n_generated == 2


def test_what_has_ended_keeps_no_embeddings() -> None:
    scheduler = make()
    seq = add(scheduler, 0, [*range(4), -1], picture(4, 1))
    seq.embeddings[0] = np.zeros((1, 1))
    step(scheduler)
    scheduler.finish(seq)
    assert not seq.embeddings
