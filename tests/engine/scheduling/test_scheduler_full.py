"""When slots, pages or a context are full: who waits, who pauses, what is dropped."""

from __future__ import annotations

import pytest
from scheduling import add, make, shares, step

from gguf_serve.engine.request import Scoring
from gguf_serve.engine.scheduling.chunks import SCORES_OF_STEP


def test_id_slot_waits_without_blocking_others():
    scheduler = make(n_slots=2)
    a = add(scheduler, [1, 2])
    step(scheduler)
    b = add(scheduler, [3, 4], id_slot=2)  # modulo: slot 0, which is busy
    c = add(scheduler, [5, 6])
    d = add(scheduler, [7, 8])
    plan = step(scheduler)
    assert plan.started == [c]
    assert (a.slot, c.slot) == (0, 1)
    scheduler.finish(c)
    assert step(scheduler).started == [d]
    scheduler.finish(a)
    assert step(scheduler).started == [b]
    assert b.slot == 0


def test_waiting_for_pages_is_not_overtaken():
    scheduler = make(4, n_ctx=16)
    a = add(scheduler, range(8))
    step(scheduler)
    add(scheduler, range(20, 28))
    add(scheduler, [1])
    assert step(scheduler).started == []
    scheduler.finish(a)
    assert len(step(scheduler).started) == 2


def test_cancel_in_every_state():
    scheduler = make(n_slots=1, n_ubatch=4)
    a, b = add(scheduler, range(10)), add(scheduler, range(10, 20))
    plan = scheduler.plan()
    scheduler.finish(a)  # between plan and advance, in the middle of its prompt
    scheduler.advance(plan)
    assert (a.state, a.table, scheduler.slots) == ("finished", [], [None])
    scheduler.finish(a)
    scheduler.finish(b)  # while it waits
    assert scheduler.plan() is None
    c = add(scheduler, range(30, 40))
    for _ in range(5):
        step(scheduler)
    assert c.n_generated == 3
    scheduler.finish(c)
    assert scheduler.cache.stats().n_used == 0


def test_youngest_pauses_when_the_pool_is_exhausted_and_loses_nothing():
    scheduler = make(5, n_slots=2, n_ctx=20)
    a = add(scheduler, range(7))
    step(scheduler)
    b = add(scheduler, range(20, 23))
    while b.state != "waiting" or not b.n_generated:
        step(scheduler)
    generated, slot = b.n_generated, b.slot
    assert a.state == "running"
    assert scheduler.slots[slot] is b
    assert scheduler.n_preempted == 1
    c = add(scheduler, [50])
    step(scheduler)
    assert c.state == "waiting"  # the slot is still b's
    scheduler.finish(a)
    plan = step(scheduler)
    assert (b.state, b.slot, b.n_cached, b.n_generated) == ("running", slot, 0, generated + 1)
    assert plan.started == [c]


def test_arrival_decides_who_pauses_and_who_comes_back():
    scheduler = make(6, n_slots=2, n_ctx=24)
    a = add(scheduler, range(4), id_slot=0)
    step(scheduler)
    b = add(scheduler, range(10, 14), id_slot=0)
    c = add(scheduler, range(20, 24))
    step(scheduler)
    scheduler.finish(a)
    assert step(scheduler).started == [b]
    assert scheduler.running == [b, c]  # though c has been there longer
    d = add(scheduler, range(30, 34))
    while c.state == "running":
        step(scheduler)
    assert b.state == "running"
    assert list(scheduler.waiting.in_turn(scheduler.running)) == [c, d]


@pytest.mark.parametrize(
    ("n_keep", "n_discard", "kept", "dropped"),
    [(0, 0, 1, 7), (4, 0, 5, 5), (-1, 0, 11, 2), (100, 0, 12, 2), (4, 2, 5, 2), (4, 99, 5, 10)],
)
def test_a_full_context_shifts(n_keep, n_discard, kept, dropped):
    scheduler = make(n_ctx=16, shift_keep=1)
    seq = add(scheduler, range(10), n_keep=n_keep, n_discard=n_discard)
    while not scheduler.is_full(seq):
        step(scheduler, token=50 + seq.n_generated)
    before = seq.tokens.copy()
    scheduler.shift(seq)
    assert seq.tokens == before[:kept] + before[kept + dropped :]
    assert seq.n_generated == 6
    plan = step(scheduler)
    assert plan.started == []
    (chunk,) = plan.chunks
    assert chunk.start <= kept
    assert chunk.outputs == "last"
    assert seq.n_generated == 7


def test_pages_that_others_hold_stay_when_a_context_shifts():
    scheduler = make(n_ctx=16, shift_keep=0)
    seq = add(scheduler, range(8))
    for _ in range(4):
        step(scheduler)
    other = add(scheduler, [*range(8), 9])
    while not scheduler.is_full(seq):
        step(scheduler)
    table, tokens = other.table[:2], other.tokens.copy()
    scheduler.shift(seq)
    step(scheduler)
    assert other.table[:2] == table
    assert other.tokens[: len(tokens)] == tokens
    assert not set(seq.table) & set(table)


def test_a_step_scores_fewer_tokens_of_a_prompt_if_each_has_many_scores():
    scheduler = make(n_ctx=64, n_ubatch=16)
    add(scheduler, range(40), wants=Scoring(SCORES_OF_STEP // 5 - 1), max_tokens=0)
    assert [share[2:] for share in shares(step(scheduler))] == [(5, "all")]
    add(scheduler, range(40), wants=Scoring(2 * SCORES_OF_STEP), max_tokens=0)
    assert [share[2:] for share in shares(step(scheduler))] == [(5, "all"), (1, "all")]
