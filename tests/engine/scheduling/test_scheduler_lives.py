"""The scheduler against a simulated device: whole lives of random requests."""

from __future__ import annotations

import random

from hypothesis import given, settings
from hypothesis import strategies as st
from scheduling import SIZE, ids, make

from gguf_serve.engine.errors import ContextOverflowError
from gguf_serve.engine.request import Generation, Request, Scoring
from gguf_serve.engine.scheduling.checkpoints import Checkpoints
from gguf_serve.engine.scheduling.sequence import Plan, Sequence


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
            wants=rng.choice([Generation()] * 3 + [Scoring()]),
            id_slot=rng.choice([-1, -1, -1, 0, 1, 7]),
            n_keep=rng.choice([0, 3, -1]),
            n_discard=rng.choice([0, 0, 1, 100]),
        )
        seq = Sequence.from_request(next(ids), request, rng.choice([None, None, 1]))
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
            n_scored = seq.n_prompt if request.wants == Scoring() else 0
            assert self.scored[seq] == list(range(n_scored)), "each position, once, in order"
            assert self.n_started[seq] == 1
            self.scheduler.finish(seq)
            self.live.remove(seq)
            self.ended.append(seq.tokens)

    def cancel(self):
        seq = self.live.pop(self.rng.randrange(len(self.live)))
        self.scheduler.finish(seq)

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
