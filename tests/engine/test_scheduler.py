"""The scheduler against a simulated device; whole lives of random requests at the end."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engine.cache import PageCache
from engine.checkpoints import Checkpoints
from engine.errors import ContextOverflowError, RequestError
from engine.request import Request
from engine.scheduler import Scheduler
from engine.sequence import Plan, Sequence

SIZE = 4
_ids = iter(range(10**9))


def make(n_pages=32, *, n_slots=4, n_ctx=64, n_batch=64, n_ubatch=16, **more):
    cache = PageCache(n_pages, SIZE)
    return Scheduler(
        cache, n_slots=n_slots, n_ctx_slot=n_ctx, n_batch=n_batch, n_ubatch=n_ubatch, **more
    )


def add(scheduler, prompt, salt=None, **fields):
    seq = Sequence.from_request(next(_ids), Request(tuple(prompt), **fields), salt)
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


def shares(plan):
    return [(chunk.seq.id, chunk.start, chunk.count, chunk.outputs) for chunk in plan.chunks]


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
    seq = add(scheduler, range(10), prompt_logprobs=0, max_tokens=0)
    assert shares(step(scheduler)) == [(seq.id, 0, 6, "all")]
    plan = step(scheduler)
    assert shares(plan) == [(seq.id, 6, 4, "all")]
    assert plan.chunks[0].is_final
    assert scheduler.plan() is None  # it waits for its end
    scheduler.finish(seq)


def test_rows_of_logits_that_others_took_are_missing_at_the_end_of_a_prompt():
    scheduler = make(max_outputs=4)
    a = add(scheduler, range(4), prompt_logprobs=0)
    b = add(scheduler, range(10, 15))
    assert shares(step(scheduler)) == [(a.id, 0, 4, "all"), (b.id, 0, 4, "none")]
    assert shares(step(scheduler)) == [(a.id, 4, 1, "last"), (b.id, 4, 1, "last")]


def test_scored_prompt_takes_nothing_from_the_cache():
    scheduler = make()
    scheduler_run(scheduler, add(scheduler, range(10), max_tokens=0))
    seq = add(scheduler, range(10), prompt_logprobs=3, max_tokens=0)
    assert shares(step(scheduler)) == [(seq.id, 0, 10, "all")]
    assert seq.n_cached == 0


def scheduler_run(scheduler, seq):
    while seq.n_pending or seq.state != "running":
        assert step(scheduler) is not None
    scheduler.finish(seq)


def test_prompt_only_request_wants_no_logits():
    scheduler = make()
    seq = add(scheduler, range(5), max_tokens=0)
    assert shares(step(scheduler)) == [(seq.id, 0, 5, "none")]
    assert scheduler.plan() is None


def test_second_request_starts_behind_what_is_cached():
    scheduler = make()
    scheduler_run(scheduler, add(scheduler, range(10), max_tokens=0))
    seq = add(scheduler, range(10))
    plan = step(scheduler)
    assert shares(plan) == [(seq.id, 9, 1, "last")]
    assert [copy.n_rows for copy in plan.copies] == [1]
    assert seq.n_cached == 9


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
    "fields", [{"salt": 1}, {"cache_prompt": False}, {"prompt_logprobs": 0}], ids=str
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
    scheduler.cancel(a)  # between plan and advance, in the middle of its prompt
    scheduler.advance(plan)
    assert (a.state, a.table, scheduler.slots) == ("finished", [], [None])
    scheduler.cancel(a)
    scheduler.cancel(b)  # while it waits
    assert scheduler.plan() is None
    c = add(scheduler, range(30, 40))
    for _ in range(5):
        step(scheduler)
    assert c.n_generated == 3
    scheduler.cancel(c)
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
    assert scheduler.waiting == [c, d]


class Simulation:
    """A device whose KV row is a digest of all tokens up to it, and clients of all kinds.

    The next token depends on the KV read through the page table, so that a wrong page
    shows in the output as well; it equals what the sequence would give when run alone.
    """

    def __init__(self, rng: random.Random):
        self.rng = rng
        n_slots = rng.randint(1, 4)
        self.n_ctx = rng.randint(4, 60)
        self.scheduler = make(
            rng.randint(1, 16),
            n_slots=n_slots,
            n_ctx=self.n_ctx,
            n_batch=rng.randint(n_slots, 20),
            n_ubatch=rng.randint(n_slots, 20),
            prompt_chunk=rng.choice([None, rng.randint(1, 20)]),
            max_outputs=rng.choice([None, rng.randint(n_slots, 20)]),
            shift_keep=rng.choice([None, 0, 1]),
            checkpoints=rng.choice([None, Checkpoints(rng.randint(1, 6), rng.choice([5, 100]))]),
        )
        self.has_states = self.scheduler.checkpoints is not None
        self.states = [0] * n_slots  # what slots keep beside pages
        self.copies: dict[int, tuple[int, int]] = {}  # of them: position, state
        if self.scheduler.max_outputs < n_slots:
            self.scheduler.max_outputs = n_slots
        cache = self.scheduler.cache
        self.rows = [[0] * SIZE for _ in range(cache.n_pages)]
        self.live: list[Sequence] = []
        self.ended: list[list[int]] = []  # conversations that may go on
        self.scored: dict[Sequence, list[int]] = {}
        self.n_started: dict[Sequence, int] = {}

    def arrive(self):
        rng = self.rng
        start = rng.choice([[], [1] * 15, [1, 0, 1, 1, 0, 1, 0, 0, 1, 1], *self.ended])
        prompt = [*start, *(rng.randint(0, 1) for _ in range(rng.randint(1, 12)))]
        request = Request(
            tuple(prompt),
            max_tokens=rng.choice([0, 1, 5, 30, -1]),
            cache_prompt=rng.random() < 0.85,
            prompt_logprobs=rng.choice([None, None, None, 0]),
            id_slot=rng.choice([-1, -1, -1, 0, 1, 7]),
            n_keep=rng.choice([0, 3, -1]),
            n_discard=rng.choice([0, 0, 1, 100]),
        )
        seq = Sequence.from_request(next(_ids), request, rng.choice([None, None, 1]))
        try:
            self.scheduler.add(seq)
        except ContextOverflowError:
            assert len(prompt) >= min(self.n_ctx, len(self.rows) * SIZE)
        else:
            self.live.append(seq)
            self.scored[seq] = []
            self.n_started[seq] = 0

    def step(self) -> Plan | None:
        before = list(self.scheduler.running)
        plan = self.scheduler.plan()
        if plan is None:
            assert not self.scheduler.running
            assert not self.scheduler.waiting
            return None
        self.check_plan(plan, before)
        self.copy(plan)
        for chunk in plan.chunks:
            self.forward(chunk)
        self.scheduler.advance(plan)
        for chunk in plan.chunks:
            if chunk.is_final:
                self.sample(chunk.seq)
        self.check_pages()
        return plan

    def check_plan(self, plan, before):
        scheduler, chunks = self.scheduler, plan.chunks
        running = scheduler.running
        assert chunks
        assert all(chunk.count > 0 and chunk.seq in running for chunk in chunks)
        assert len({chunk.seq for chunk in chunks}) == len(chunks) <= len(scheduler.slots)
        decoding = [seq for seq in before if seq in running and seq.n_pending == 1]
        assert [chunk.seq for chunk in chunks[: len(decoding)]] == decoding
        n_prompt = sum(chunk.count for chunk in chunks[len(decoding) :])
        assert n_prompt + len(decoding) <= scheduler.max_tokens
        assert not decoding or n_prompt <= scheduler.prompt_chunk
        assert sum(chunk.n_outputs for chunk in chunks) <= scheduler.max_outputs
        if before:  # no livelock: the oldest one always moves
            assert before[0] in [chunk.seq for chunk in chunks]
        for seq in plan.started:
            self.n_started[seq] += 1
            assert seq.n_cached == seq.n_computed < seq.n_prompt
            wanted = seq.request.id_slot
            assert wanted < 0 or seq.slot == wanted % len(scheduler.slots)
        for slot, seq in enumerate(scheduler.slots):
            assert seq is None or (seq.slot == slot and seq.state in ("running", "waiting"))
        assert all(scheduler.slots[seq.slot] is seq for seq in running)

    def copy(self, plan):
        """All at once: every source is read before any target is written."""
        read = [(copy, self.rows[copy.source][: copy.n_rows]) for copy in plan.copies]
        for copy, rows in read:
            self.rows[copy.target][: copy.n_rows] = rows
        for save in plan.saves:
            self.copies[save.copy] = save.position, self.states[save.slot]
        for restore in plan.restores:
            position, self.states[restore.slot] = self.copies[restore.copy]
            assert position == restore.position

    def forward(self, chunk):
        seq = chunk.seq
        assert chunk.start == seq.n_computed
        for i in range(chunk.start, chunk.start + chunk.count):
            page = seq.table[i // SIZE]
            assert self.scheduler.cache._refs[page] == 1 + (page in self.scheduler.cache._pinned)
            before = self.row(seq, i - 1) if i else hash((seq.salt or 0,))
            if self.has_states and i:
                before = self.states[seq.slot]
            self.states[seq.slot] = self.rows[page][i % SIZE] = hash((before, seq.tokens[i]))
        assert (chunk.outputs == "last") <= chunk.is_final
        assert not chunk.is_final or seq.request.max_tokens == 0 or chunk.n_outputs
        if chunk.outputs == "all":
            self.scored[seq].extend(range(chunk.start, chunk.start + chunk.count))

    def row(self, seq, i):
        return self.rows[seq.table[i // SIZE]][i % SIZE]

    def sample(self, seq):
        request = seq.request
        if request.max_tokens:
            self.scheduler.append(seq, self.row(seq, len(seq.tokens) - 1) // 7 % 2)
        is_full = self.scheduler.is_full(seq)
        shifts = is_full and self.scheduler.shift_keep is not None
        if shifts and seq.n_generated < request.max_tokens:
            self.scheduler.shift(seq)
            return
        if seq.n_generated == request.max_tokens or is_full:
            n_scored = 0 if request.prompt_logprobs is None else seq.n_prompt
            assert self.scored[seq] == list(range(n_scored)), "each position, once, in order"
            assert self.n_started[seq] == 1
            self.scheduler.finish(seq)
            self.live.remove(seq)
            self.ended.append(seq.tokens)

    def cancel(self):
        seq = self.live.pop(self.rng.randrange(len(self.live)))
        self.scheduler.cancel(seq)

    def check_pages(self):
        cache = self.scheduler.cache
        owners = [0] * cache.n_pages
        for seq in self.live:
            state = hash((seq.salt or 0,))
            for i, token in enumerate(seq.tokens):
                if seq.n_dropped == 0 and i >= seq.n_prompt:
                    assert token == state // 7 % 2, "as if it had run alone"
                state = hash((state, token))
                assert i >= seq.n_computed or self.row(seq, i) == state
            for page in seq.table:
                owners[page] += 1
        assert owners == cache._refs
        assert cache.n_available == owners.count(0)


def kept(n_copies=8, min_step=100, **more):
    """A scheduler for a model with a state beside pages."""
    return make(checkpoints=Checkpoints(n_copies, min_step), **more)


def run_to_end(scheduler, seq, n_tokens=1):
    """The plans until the sequence has generated so many tokens and is finished."""
    plans = []
    while seq.n_generated < n_tokens:
        plans.append(step(scheduler))
    scheduler.finish(seq)
    return plans


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


@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2**40))
def test_random_lives(seed):
    rng = random.Random(seed)
    simulation = Simulation(rng)
    n_arrivals = rng.randint(1, 14)
    pressure = rng.choice([0.1, 0.5, 1.0])
    n_steps = 0
    while n_arrivals or simulation.live:
        while n_arrivals and rng.random() < pressure:
            simulation.arrive()
            n_arrivals -= 1
        if simulation.live and rng.random() < 0.03:
            simulation.cancel()
        if simulation.step() is not None:
            n_steps += 1
        assert n_steps < 14 * 100, "somebody starves"
    assert simulation.scheduler.cache.stats().n_used == 0
    assert simulation.scheduler.slots == [None] * len(simulation.scheduler.slots)


def test_embedded_prompts_ask_for_states():
    """The pooling "rank" reads the last token only, as sampling does."""
    scheduler = make()
    embedded = add(scheduler, range(20), pooling="mean")
    assert shares(step(scheduler)) == [(embedded.id, 0, 16, "hidden")]
    ranked = add(scheduler, range(8), pooling="rank", max_tokens=0)
    assert shares(scheduler.plan()) == [
        (embedded.id, 16, 4, "hidden"),
        (ranked.id, 0, 8, "last"),
    ]
    assert not embedded.share


def test_whole_prompts_wait_for_a_forward_with_room():
    """Neither the pace nor others' tokens cut them; shorter ones fill what is left."""
    scheduler = make(whole_prompts=True, prompt_chunk=2)
    seqs = [add(scheduler, range(n), pooling="mean") for n in (9, 10, 6, 1)]
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
    add(scheduler, range(16), pooling="cls")
    with pytest.raises(RequestError, match=r"17 tokens.*--ubatch-size.*16"):
        add(scheduler, range(17), pooling="cls")


def test_an_embedded_prompt_may_fill_the_context():
    scheduler = make(n_ctx=16)
    add(scheduler, range(16), pooling="last")
    for fields in ({"pooling": "last"}, {}):
        with pytest.raises(ContextOverflowError):
            add(scheduler, range(17 if fields else 16), **fields)
