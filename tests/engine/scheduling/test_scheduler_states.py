"""Checkpoints of states: when copies are made, and which are put back."""

from __future__ import annotations

from scheduling import add, kept, make, run_to_end, shares, step

from gguf_serve.engine.scheduling.checkpoints import Checkpoints


def test_a_state_is_copied_at_the_end_and_put_back():
    scheduler = kept()
    first = add(scheduler, range(10))
    run_to_end(scheduler, first, 3)  # 12 tokens are computed
    second = add(scheduler, [*first.tokens, 7, 8], id_slot=2)
    plan = step(scheduler)
    assert plan.saves == [(0, 12, plan.saves[0].copy)]
    assert plan.restores == [(2, 12, plan.saves[0].copy)]
    assert shares(plan) == [(second.id, 12, 3, "last")]


def test_without_a_checkpoint_all_is_computed():
    scheduler = kept()
    run_to_end(scheduler, add(scheduler, range(12)))
    assert scheduler.cache.match([*range(10), 50, 51]) == 10
    second = add(scheduler, [*range(10), 50, 51])
    plan = step(scheduler)
    assert (shares(plan), plan.restores) == ([(second.id, 0, 8, "none")], [])
    assert step(scheduler).saves[0].position == 8  # for the next one that begins like that


def test_a_prompt_is_cut_before_its_end_and_at_every_step():
    scheduler = kept(min_step=20, n_ubatch=64)
    plans = run_to_end(scheduler, add(scheduler, range(50)))
    starts = [chunk.start for plan in plans for chunk in plan.chunks]
    assert starts == [0, 20, 32, 40]  # 32 is the last page's end at least 16 tokens before 50
    assert [save.position for plan in plans for save in plan.saves] == [20, 32, 40]


def test_who_waits_for_a_prefix_has_a_checkpoint_made_for_it():
    scheduler = kept(n_ubatch=8)
    common = list(range(22))
    first = add(scheduler, [*common, 90, *range(30, 37)])
    step(scheduler)
    second = add(scheduler, [*common, 91, 92])
    starts = []
    while second.state == "waiting":
        plan = step(scheduler)
        starts += [chunk.start for chunk in plan.chunks if chunk.seq is first]
    assert starts == [8, 12, 20, 28]  # 12: near the end of its own prompt
    assert [(r.slot, r.position) for r in plan.restores] == [(1, 20)]
    assert (second.n_cached, shares(plan)[1]) == (20, (second.id, 20, 4, "last"))


def test_the_oldest_copy_goes():
    scheduler = kept(n_copies=2)
    prompts = [list(range(i, i + 8)) for i in (0, 20, 40)]
    for prompt in prompts:
        run_to_end(scheduler, add(scheduler, prompt))
    found = [scheduler.checkpoints.find(prompt, None, 8) for prompt in prompts]
    assert found[0] is None
    assert {c.copy for c in found[1:]} == {0, 1}
    assert {c.position for c in found[1:]} == {8}


def test_a_checkpoint_without_memory_is_not_made():
    """Nobody finds it then, and the next one is tried again."""
    granted = iter([False, True, True])
    checkpoints = Checkpoints(2, 100, claim=lambda copy, position: next(granted))
    scheduler = make(checkpoints=checkpoints)
    first = add(scheduler, range(10))
    run_to_end(scheduler, first, 3)
    assert len(checkpoints) == 0
    second = add(scheduler, [*first.tokens, 7, 8])
    plan = step(scheduler)
    assert (plan.saves, plan.restores, plan.chunks[0].start) == ([], [], 0)
    run_to_end(scheduler, second)
    assert len(checkpoints) > 0


def test_copies_of_what_is_no_numbers_are_given_up():
    """From where the sequence began to compute itself; what it has taken stays."""
    scheduler = kept()
    first = add(scheduler, range(10))
    run_to_end(scheduler, first, 3)
    odd = add(scheduler, [*first.tokens, *range(30, 42)])
    for _ in range(9):
        step(scheduler)
    scheduler.discard(odd)
    scheduler.finish(odd)
    found = scheduler.checkpoints.find(odd.tokens, None, len(odd.tokens))
    assert found is not None
    assert found.position == odd.n_reused == 12
    assert scheduler.cache.match(odd.tokens) == 12
