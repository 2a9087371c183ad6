"""Clients, and the requests of each, take turns."""

from __future__ import annotations

from scheduling import add, make, run_to_end, step


def starts(scheduler, n, n_tokens=2):
    """The clients and batches of the next n that get a slot, each of which generates a little."""
    found = []
    while len(found) < n:
        plan = step(scheduler)
        found += [(seq.request.client, seq.request.batch) for seq in plan.started]
        for seq in scheduler.running.copy():
            if seq.n_generated >= n_tokens:
                scheduler.finish(seq)
    return found


def prompts(scheduler, n, client, batch):
    return [add(scheduler, [batch, i, 5, 6], client=client, batch=batch) for i in range(n)]


def test_a_batch_is_one_turn_among_others():
    scheduler = make(n_slots=2)
    prompts(scheduler, 50, "a", 1)
    assert starts(scheduler, 2) == [("a", 1)] * 2
    prompts(scheduler, 1, "b", 2)
    prompts(scheduler, 1, "a", 3)
    # Whose turn was longest ago: the batch, once, then each of those that came after it.
    assert starts(scheduler, 3)[:3] == [("a", 1), ("b", 2), ("a", 3)]


def test_two_batches_share_the_slots():
    scheduler = make(n_slots=1)
    prompts(scheduler, 3, "a", 1)
    prompts(scheduler, 2, "a", 2)
    prompts(scheduler, 2, "b", 3)
    order = [("a", 1), ("b", 3), ("a", 2), ("b", 3), ("a", 1), ("a", 2), ("a", 1)]
    assert starts(scheduler, 7) == order
    assert len(scheduler.waiting) == 0


def test_one_client_is_served_by_arrival():
    scheduler = make(n_slots=1)
    for batch in range(5):
        prompts(scheduler, 1, "a", batch)
    assert starts(scheduler, 5) == [("a", batch) for batch in range(5)]


def test_priorities():
    """Above 0 others go first, whoever they are; below 0 only those of the same client wait."""
    scheduler = make(n_slots=1)
    for batch, client, priority in (
        (1, "a", 5),
        (2, "a", 0),
        (3, "b", 0),
        (4, "b", -3),
        (5, "a", 1),
    ):
        add(scheduler, [batch], client=client, batch=batch, priority=priority)
    assert starts(scheduler, 5) == [("a", 2), ("b", 4), ("b", 3), ("a", 5), ("a", 1)]
    assert len(scheduler.waiting) == 0


def test_who_yields_is_no_newcomer_for_whom_a_prompt_makes_room():
    scheduler = make(n_slots=2)
    busy = add(scheduler, range(60), client="a", batch=1)
    step(scheduler)
    add(scheduler, [1], client="b", batch=2, priority=1)
    assert not scheduler.waiting.has_newcomer([busy])
    add(scheduler, [1], client="b", batch=3)
    assert scheduler.waiting.has_newcomer([busy])


def test_who_waits_for_room_is_not_overtaken_for_ever():
    scheduler = make(8, n_slots=2, n_ctx=32)
    long = add(scheduler, range(24), client="a", batch=1)
    busy = add(scheduler, range(100, 124), client="b", batch=2)
    step(scheduler)
    assert scheduler.running == [long]
    for batch in range(3, 8):  # each would have room
        add(scheduler, [batch], client=f"c{batch}", batch=batch)
        step(scheduler)
        assert len(scheduler.running) == 1
    scheduler.finish(long)
    assert busy in step(scheduler).started


def test_one_that_waits_can_leave():
    scheduler = make(n_slots=1)
    first, second, third = prompts(scheduler, 3, "a", 1)
    step(scheduler)
    scheduler.finish(second)
    scheduler.finish(first)
    assert step(scheduler).started == [third]
    assert len(scheduler.waiting) == 0


def test_a_paused_one_comes_first():
    scheduler = make(6, n_slots=2, n_ctx=24)
    a = add(scheduler, [1, 2, 3, 4, 5, 6, 7], client="a", batch=1)
    b = add(scheduler, [11, 12, 13, 14, 15, 16, 17], client="b", batch=2)
    while b.state != "waiting" or b.slot < 0:
        step(scheduler)
    assert scheduler.waiting.n_paused == 1
    add(scheduler, [9], client="c", batch=3)
    assert next(iter(scheduler.waiting.in_turn(scheduler.running))) is b
    scheduler.finish(a)
    run_to_end(scheduler, b, 8)


def test_prompts_of_two_clients_go_on_in_turn():
    scheduler = make(64, n_slots=2, n_ctx=128, n_ubatch=16)
    long = add(scheduler, range(100), client="a", batch=1)
    step(scheduler)
    short = add(scheduler, range(200, 220), client="b", batch=2)
    steps = 0
    while short.n_generated == 0:
        step(scheduler)
        steps += 1
    assert steps <= 5
    assert long.n_pending > 1
