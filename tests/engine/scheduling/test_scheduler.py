"""What the scheduler plans: chunks of prompts, shared prefixes, and what it refuses."""

from __future__ import annotations

import pytest
from scheduling import add, make, run_prompt, shares, step

from gguf_serve.engine.errors import ContextOverflowError, RequestError
from gguf_serve.engine.request import Embedding, Ranking, Scoring


def test_prompt_in_chunks_then_one_token_each_step():
    scheduler = make()
    seq = add(scheduler, range(20))
    plan = step(scheduler)
    assert shares(plan) == [(seq.id, 0, 16, "none")]
    assert plan.started == [seq]
    assert (seq.slot, seq.n_cached) == (0, 0)
    plan = step(scheduler)
    assert shares(plan) == [(seq.id, 16, 4, "last")]
    assert plan.started == []
    assert shares(step(scheduler)) == [(seq.id, 20, 1, "last")]
    assert seq.n_generated == 2
    scheduler.finish(seq)
    assert scheduler.plan() is None
    assert scheduler.slots == [None] * 4
    assert scheduler.cache.stats().n_used == 0


def test_decoding_comes_first_and_prompts_by_arrival():
    scheduler = make()
    a = add(scheduler, [1, 2])
    step(scheduler)
    b = add(scheduler, range(10, 20))
    c = add(scheduler, range(20, 30))
    assert shares(step(scheduler)) == [
        (a.id, 2, 1, "last"),
        (b.id, 0, 10, "last"),
        (c.id, 0, 5, "none"),
    ]
    assert shares(step(scheduler)) == [
        (a.id, 3, 1, "last"),
        (b.id, 10, 1, "last"),
        (c.id, 5, 5, "last"),
    ]


def test_smaller_of_batch_and_ubatch_bounds_a_forward():
    scheduler = make(n_batch=6)
    seq = add(scheduler, range(20))
    assert shares(step(scheduler)) == [(seq.id, 0, 6, "none")]


def test_prompt_chunk_holds_only_while_something_decodes():
    scheduler = make(prompt_chunk=3)
    a = add(scheduler, range(6))
    assert shares(step(scheduler)) == [(a.id, 0, 6, "last")]
    b, c = add(scheduler, range(10, 12)), add(scheduler, range(20, 30))
    plan = step(scheduler)
    assert shares(plan) == [(a.id, 6, 1, "last"), (b.id, 0, 2, "last"), (c.id, 0, 1, "none")]


def test_scored_prompt_wants_all_rows_within_the_bound():
    scheduler = make(max_outputs=6)
    seq = add(scheduler, range(10), wants=Scoring(0), max_tokens=0)
    assert shares(step(scheduler)) == [(seq.id, 0, 6, "all")]
    plan = step(scheduler)
    assert shares(plan) == [(seq.id, 6, 4, "all")]
    assert plan.chunks[0].is_final
    assert scheduler.plan() is None  # it waits for its end
    scheduler.finish(seq)


def test_rows_of_logits_that_others_took_are_missing_at_the_end_of_a_prompt():
    scheduler = make(max_outputs=4)
    a = add(scheduler, range(4), wants=Scoring(0))
    b = add(scheduler, range(10, 15))
    assert shares(step(scheduler)) == [(a.id, 0, 4, "all"), (b.id, 0, 4, "none")]
    assert shares(step(scheduler)) == [(a.id, 4, 1, "last"), (b.id, 4, 1, "last")]


def test_scored_prompt_takes_nothing_from_the_cache():
    scheduler = make()
    run_prompt(scheduler, add(scheduler, range(10), max_tokens=0))
    seq = add(scheduler, range(10), wants=Scoring(3), max_tokens=0)
    assert shares(step(scheduler)) == [(seq.id, 0, 10, "all")]
    assert seq.n_cached == 0


def test_prompt_only_request_wants_no_logits():
    scheduler = make()
    seq = add(scheduler, range(5), max_tokens=0)
    assert shares(step(scheduler)) == [(seq.id, 0, 5, "none")]
    assert scheduler.plan() is None


def test_second_request_starts_behind_what_is_cached():
    scheduler = make()
    run_prompt(scheduler, add(scheduler, range(10), max_tokens=0))
    seq = add(scheduler, range(10))
    plan = step(scheduler)
    assert shares(plan) == [(seq.id, 9, 1, "last")]
    assert [copy.n_rows for copy in plan.copies] == [1]
    assert seq.n_cached == 9


def test_who_waits_for_a_disk_is_passed_over():
    scheduler = make(n_slots=1)
    first, second = add(scheduler, range(5)), add(scheduler, range(10, 15))
    first.is_loading = True
    assert shares(scheduler.plan()) == [(second.id, 0, 5, "last")]
    scheduler.finish(second)
    assert scheduler.plan() is None
    first.is_loading = False
    assert shares(scheduler.plan()) == [(first.id, 0, 5, "last")]


def test_a_model_with_states_shares_nothing():
    """Not what ended, not what runs at the same time, and not after a pause."""
    scheduler = make(share=False)
    first = add(scheduler, range(12))
    step(scheduler)
    scheduler.finish(first)
    second, third = add(scheduler, range(12)), add(scheduler, range(12))
    assert [part[1:3] for part in shares(step(scheduler))] == [(0, 12), (0, 4)]
    assert (second.n_cached, third.n_cached) == (0, 0)


def test_equal_prompts_at_once_are_computed_once():
    scheduler = make(n_ctx=128)
    seqs = [add(scheduler, range(40)) for _ in range(3)]
    other = add(scheduler, range(100, 104))
    n_tokens = 0
    while any(seq.n_pending != 1 or not seq.n_generated for seq in seqs):
        n_tokens += sum(c.count for c in step(scheduler).chunks if c.start < 40 and c.seq in seqs)
    assert n_tokens == 42
    assert [seq.n_cached for seq in seqs] == [0, 39, 39]
    assert other.n_generated > 1  # it did not wait for the prefix


@pytest.mark.parametrize(
    "fields", [{"salt": 1}, {"cache_prompt": False}, {"wants": Scoring(0)}], ids=str
)
def test_nothing_waits_for_a_prefix_that_it_cannot_share(fields):
    scheduler = make(n_ubatch=32)
    a = add(scheduler, range(12))
    b = add(scheduler, range(12), **fields)
    assert step(scheduler).started == [a, b]


def test_admission_leaves_a_page_for_each_that_runs():
    scheduler = make(4, n_ctx=16)
    a = add(scheduler, range(4))
    step(scheduler)
    b = add(scheduler, range(20, 28))
    assert step(scheduler).started == []  # a has got its second page, two are left
    scheduler.finish(a)
    assert step(scheduler).started == [b]


@pytest.mark.parametrize("n_prompt", [16, 17, 1000])
def test_prompt_that_fills_the_context_is_refused(n_prompt):
    scheduler = make(n_ctx=16)
    with pytest.raises(ContextOverflowError) as info:
        add(scheduler, [0] * n_prompt)
    assert (info.value.n_prompt_tokens, info.value.n_ctx) == (n_prompt, 16)


def test_context_is_no_larger_than_the_pool():
    with pytest.raises(ContextOverflowError, match=r"12 tokens.*\(12 tokens\)"):
        add(make(3, n_ctx=64), [0] * 12)


def test_bad_sequences_are_refused():
    scheduler = make()
    with pytest.raises(RequestError, match="no tokens"):
        add(scheduler, [])
    seq = add(scheduler, [1])
    with pytest.raises(ValueError, match=f"{seq.id} was added before"):
        scheduler.add(seq)
    with pytest.raises(ValueError, match=f"1 of sequence {seq.id}"):
        scheduler.append(seq, 5)


@pytest.mark.parametrize(
    ("bad", "value"),
    [({"n_slots": 0}, "0"), ({"prompt_chunk": 0}, "0"), ({"max_outputs": 3}, "3"),
     ({"n_ubatch": 3}, "3"), ({"n_batch": 2}, "2")],
)  # fmt: skip
def test_numbers_that_would_starve_a_slot_are_refused(bad, value):
    with pytest.raises(ValueError, match=value):
        make(**bad)


@pytest.mark.parametrize("n_pages", [4, 32])
@pytest.mark.parametrize("n_prompt", [1, 8, 15])
def test_prompt_and_completion_fill_the_context(n_prompt, n_pages):
    scheduler = make(n_pages, n_ctx=16)
    seq = add(scheduler, range(n_prompt))
    while not scheduler.is_full(seq):
        step(scheduler)
    assert (len(seq.tokens), seq.n_computed) == (16, 15)
    with pytest.raises(ValueError, match=f"the 16 of sequence {seq.id}"):
        scheduler.append(seq, 0)


def test_embedded_prompts_ask_for_states():
    """The pooling "rank" reads the last token only, as sampling does."""
    scheduler = make()
    embedded = add(scheduler, range(20), wants=Embedding("mean"))
    assert shares(step(scheduler)) == [(embedded.id, 0, 16, "hidden")]
    ranked = add(scheduler, range(8), wants=Ranking(), max_tokens=0)
    assert shares(scheduler.plan()) == [
        (embedded.id, 16, 4, "hidden"),
        (ranked.id, 0, 8, "last"),
    ]
    assert not embedded.share


def test_whole_prompts_wait_for_a_forward_with_room():
    """Neither the pace nor others' tokens cut them; shorter ones fill what is left."""
    scheduler = make(whole_prompts=True, prompt_chunk=2)
    seqs = [add(scheduler, range(n), wants=Embedding("mean")) for n in (9, 10, 6, 1)]
    plan = scheduler.plan(3)
    assert [(chunk.seq, chunk.count) for chunk in plan.chunks] == [
        (seqs[0], 9),
        (seqs[2], 6),
        (seqs[3], 1),
    ]
    scheduler.advance(plan)
    for seq in (seqs[0], seqs[2], seqs[3]):
        scheduler.finish(seq)
    assert shares(scheduler.plan(3)) == [(seqs[1].id, 0, 10, "hidden")]


def test_whole_prompts_that_no_forward_can_take():
    scheduler = make(whole_prompts=True)
    add(scheduler, range(16), wants=Embedding("cls"))
    with pytest.raises(RequestError, match=r"17 tokens.*--ubatch-size.*16"):
        add(scheduler, range(17), wants=Embedding("cls"))


def test_an_embedded_prompt_may_fill_the_context():
    scheduler = make(n_ctx=16)
    add(scheduler, range(16), wants=Embedding("last"))
    for fields in ({"wants": Embedding("last")}, {}):
        with pytest.raises(ContextOverflowError):
            add(scheduler, range(17 if fields else 16), **fields)
