"""The engine's thread, with a runner that computes nothing: who ends, how, and who goes on."""

from __future__ import annotations

import dataclasses
import queue
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.errors import ContextOverflowError, EngineStoppedError, RequestError
from gguf_serve.engine.forward.batch import OutputRow
from gguf_serve.engine.loading.loader import Model
from gguf_serve.engine.options import NO_ROOM, AdapterState
from gguf_serve.engine.request import (
    Delta,
    Event,
    Failed,
    Finished,
    Progress,
    PromptScored,
    ReasoningBudget,
    Request,
    Scoring,
    Started,
)
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.scheduling.page_cache import PageCache, PageCopy
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Chunk
from gguf_serve.engine.speculation_options import OFF
from gguf_serve.engine.text.detokenizer import TextDecoder
from gguf_serve.kernels.rows.topk import Found

N_VOCAB, EOS, N_CTX = 128, 0, 64
SECONDS = 120  # until a test gives up on the engine
GREEDY = SamplingParams(temperature=0.0)


class AsciiTokenizer:
    """A token for each ASCII character; the zero byte ends a text."""

    n_vocab = N_VOCAB
    eog_ids = frozenset({EOS})

    def encode(self, text: str, **_: bool) -> list[int]:
        return list(text.encode())

    def piece(self, id: int, special: bool = True) -> bytes:
        return bytes([id])

    def decoder(self, special: bool, shown: Collection[int] = ()) -> TextDecoder:
        return TextDecoder(self.piece)


class OneRow:
    """The next token is the one after the last, cyclically, with logit 9; the others have 0."""

    log_sum_exp = float(np.log(np.exp(9.0) + N_VOCAB - 1))
    picked = 0.0
    waits = False
    broken = False

    def __init__(self, last: int) -> None:
        self._row = np.zeros(N_VOCAB, np.float32)
        self._row[(last + 1) % N_VOCAB] = 9.0

    def row(self) -> Any:
        return self._row

    def best(self, k: int) -> Found:
        ids = np.argsort(-self._row, kind="stable")[:k].astype(np.int32)
        return Found(ids.tolist(), self._row[ids].tolist(), self.log_sum_exp, self.picked)

    allowed_row, allowed = row, best


class CountingRunner:
    """Waits for ``gate`` before each forward; ``fault`` is raised instead of one."""

    n_at_once = 1

    def __init__(self) -> None:
        self.gate = threading.Event()
        self.gate.set()
        self.seconds = 0.0  # of a forward, at least
        self.fault: Exception | None = None
        self.sizes: list[int] = []  # tokens of each forward
        self.scales: list[tuple[float, ...]] = []  # of the adapters for each chunk

    def begin(
        self, chunks: Sequence[Chunk], copies: Sequence[PageCopy], rows: Sequence[OutputRow]
    ) -> tuple[Sequence[Chunk], Sequence[OutputRow]]:
        return chunks, rows

    def complete(
        self,
        begun: tuple[Sequence[Chunk], Sequence[OutputRow]],
        meanwhile: Callable[[], None],
        patience: float,
    ) -> list[OneRow]:
        chunks, rows = begun
        meanwhile()
        self.gate.wait(SECONDS)
        time.sleep(self.seconds)
        if self.fault is not None:
            raise self.fault
        self.sizes.append(sum(chunk.count for chunk in chunks))
        self.scales += [chunk.seq.adapter_scales for chunk in chunks]
        return [OneRow(row.chunk.seq.tokens[row.position]) for row in rows]

    def compile_later(self) -> None:
        pass

    def on_loss(self, call: Callable[[str], None]) -> None:
        pass

    def leave(self) -> None:
        pass

    def states_of(self, rows: range) -> None:
        raise AssertionError("nothing guesses here")

    def use_pause(self) -> None:
        pass


class Events:
    """Receives the events of one request."""

    def __init__(self) -> None:
        self._queue: queue.Queue[Event] = queue.Queue()

    def __call__(self, event: Event) -> None:
        self._queue.put(event)

    def all(self) -> list[Event]:
        """Everything up to the last event."""
        events: list[Event] = []
        while not events or not isinstance(events[-1], Finished | Failed):
            events.append(self._queue.get(timeout=SECONDS))
        return events

    def wait_for(self, kind: type[Event]) -> None:
        while not isinstance(self._queue.get(timeout=SECONDS), kind):
            pass

    def text(self) -> str:
        return "".join(event.text for event in self.all() if isinstance(event, Delta))


@pytest.fixture
def runner() -> CountingRunner:
    return CountingRunner()


@pytest.fixture
def engine(runner: CountingRunner) -> Iterator[Engine]:
    scheduler = Scheduler(
        PageCache(16, 16), n_slots=2, n_ctx_slot=N_CTX, n_batch=32, n_ubatch=32, max_outputs=32
    )
    adapters = (
        AdapterState(0, Path("a.gguf"), 0.5, fingerprint="a"),
        AdapterState(1, Path("b.gguf"), 0.0, fingerprint="b", place=1),
    )
    info: Any = SimpleNamespace(
        n_vocab=N_VOCAB,
        is_encoder=False,
        ranks=False,
        adapters=adapters,
        adapter_room=NO_ROOM,
        denoising=None,
        start_token=None,
        speculation=OFF,
    )
    tokenizer: Any = AsciiTokenizer()
    no_template: Any = None
    counting: Any = runner
    made = Engine(Model(counting, scheduler, tokenizer, no_template, info))
    yield made
    runner.gate.set()
    made.close()


def request(text: str, max_tokens: int = 3, **sampling: Any) -> Request:
    params = dataclasses.replace(GREEDY, **sampling)
    return Request(tuple(text.encode()), params, max_tokens=max_tokens)


def run(engine: Engine, asked: Request) -> list[Event]:
    events = Events()
    engine.submit(asked, events)
    return events.all()


def test_events_in_order(engine: Engine) -> None:
    events = run(engine, request("ab", 2))
    assert [type(event) for event in events] == [Started, Delta, Delta, Finished]
    assert [event.text for event in events if isinstance(event, Delta)] == ["c", "d"]
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "limit"
    assert events[-1].timings.predicted_n == 2


def test_scales_of_adapters(engine: Engine, runner: CountingRunner) -> None:
    """A request's own, or the engine's; only requests with the same ones share a prefix."""
    text = "a" * 20
    for adapters, scales, n_cached in (
        (None, (0.5, 0.0), 0), (((1, 2.0),), (0.0, 2.0), 0), (None, (0.5, 0.0), 19),
        ((), (0.0, 0.0), 0),
    ):  # fmt: skip
        started = run(engine, replace(request(text, 1), adapters=adapters))[0]
        assert isinstance(started, Started)
        assert (runner.scales[-1], started.n_cached) == (scales, n_cached)
    engine.set_adapters([(1, -1.0)])
    assert [adapter.scale for adapter in engine.adapters()] == [0.0, -1.0]
    run(engine, request(text, 1))
    assert runner.scales[-1] == (0.0, -1.0)
    with pytest.raises(RequestError, match="no LoRA adapter 2"):
        engine.set_adapters([(2, 1.0)])
    with pytest.raises(RequestError, match="no LoRA adapter -1"):
        run(engine, replace(request(text, 1), adapters=((-1, 1.0),)))


def test_a_full_context_ends_truncated(engine: Engine) -> None:
    last = run(engine, request("a" * (N_CTX - 2), -1))[-1]
    assert isinstance(last, Finished)
    assert (last.reason, last.truncated) == ("limit", True)


def test_only_the_prompt(engine: Engine) -> None:
    asked = replace(request("abc", 0), wants=Scoring(1))
    events = run(engine, asked)
    assert [type(event) for event in events] == [Started, PromptScored, Finished]
    assert isinstance(events[1], PromptScored)
    assert len(events[1].scores) == 3


def test_progress_of_a_prompt(engine: Engine) -> None:
    events = run(engine, replace(request("a" * 40, 1), progress=True))
    progress = [event for event in events if isinstance(event, Progress)]
    assert [(event.n_prompt, event.n_done) for event in progress] == [(40, 0), (40, 32), (40, 40)]
    assert not any(isinstance(event, Progress) for event in run(engine, request("b" * 40, 1)))


def test_a_budget_forces_the_end_of_reasoning(engine: Engine) -> None:
    budget = ReasoningBudget("C", ("Z",), tuple(b"!Z"), n_tokens=2)
    events = Events()
    engine.submit(replace(request("A", 8), reasoning=budget), events)
    # After "!Z" the model goes on from Z; the tag that it writes itself opens nothing more.
    assert events.text() == "BCDE!Z[\\"


def test_reasoning_is_ended_from_outside(engine: Engine, runner: CountingRunner) -> None:
    budget = ReasoningBudget("A", ("~",), tuple(b"~"), is_open=True)
    events = Events()
    runner.gate.clear()
    ticket = engine.submit(replace(request("A", 4), reasoning=budget), events)
    engine.end_reasoning(ticket)
    runner.gate.set()
    assert "~" in events.text()


def test_time_is_up_at_a_new_line(engine: Engine, runner: CountingRunner) -> None:
    """Which is the fourth token; time is up at the second one."""
    runner.seconds = 0.002
    events = run(engine, replace(request(chr(6), -1), max_ms=1))
    assert isinstance(events[-1], Finished)
    assert events[-1].reason == "limit"
    assert events[-1].timings.predicted_n == 4


def test_a_request_that_cannot_be_sampled_ends_alone(
    engine: Engine, runner: CountingRunner
) -> None:
    params = {"logit_bias": tuple((id, -float("inf")) for id in range(N_VOCAB))}
    other, bad = Events(), Events()
    runner.gate.clear()
    engine.submit(request("A", 20), other)
    engine.submit(request("B", 20, temperature=1.0, **params), bad)
    runner.gate.set()
    assert isinstance(bad.all()[-1], Failed)
    assert other.text() == "BCDEFGHIJKLMNOPQRSTU"
    assert engine.healthy
    assert isinstance(run(engine, request("x"))[-1], Finished)


def test_a_receiver_that_fails_ends_only_its_request(engine: Engine) -> None:
    heard: list[Event] = []

    def on_event(event: Event) -> None:
        heard.append(event)
        raise RuntimeError("no")

    engine.submit(request("A", -1), on_event)
    assert isinstance(run(engine, request("B"))[-1], Finished)
    assert isinstance(run(engine, request("C"))[-1], Finished)
    assert len(heard) == 1
    assert engine.healthy


def test_a_fault_of_the_runner_ends_all(engine: Engine, runner: CountingRunner) -> None:
    streams = [Events() for _ in range(4)]  # two of them wait for a slot
    runner.gate.clear()
    for stream in streams:
        engine.submit(request("A"), stream)
    runner.fault = RuntimeError("the device is gone")
    runner.gate.set()
    for stream in streams:
        last = stream.all()[-1]
        assert isinstance(last, Failed)
        assert "the device is gone" in last.message
    assert not engine.healthy
    with pytest.raises(EngineStoppedError, match="the device is gone"):
        engine.submit(request("A"), Events())


def test_cancel_wherever_the_request_is(engine: Engine, runner: CountingRunner) -> None:
    streams = [Events() for _ in range(3)]
    runner.gate.clear()
    tickets = [engine.submit(request("A", -1), stream) for stream in streams]
    for ticket in reversed(tickets):  # in the inbox, waiting for a slot, in the middle
        engine.cancel(ticket)
        engine.cancel(ticket)
    runner.gate.set()
    for stream in streams:
        last = stream.all()[-1]
        assert isinstance(last, Finished)
        assert last.reason == "cancelled"
    assert isinstance(run(engine, request("B"))[-1], Finished)


def test_close_ends_every_stream(engine: Engine, runner: CountingRunner) -> None:
    streams = [Events() for _ in range(3)]
    runner.gate.clear()
    for stream in streams:
        engine.submit(request("A", -1), stream)
    closing = threading.Thread(target=engine.close)
    closing.start()
    while not engine._mailbox.stopping:
        time.sleep(0.001)
    runner.gate.set()
    closing.join()
    for stream in streams:
        last = stream.all()[-1]
        assert isinstance(last, Finished)
        assert last.reason == "cancelled"
    with pytest.raises(EngineStoppedError):
        engine.submit(request("A"), Events())


@pytest.mark.parametrize("prompt", [(), (N_VOCAB,), (-1,)])
def test_prompts_that_are_refused(engine: Engine, prompt: tuple[int, ...]) -> None:
    with pytest.raises(RequestError):
        engine.submit(Request(prompt), Events())


def test_a_prompt_beyond_the_context_is_refused(engine: Engine) -> None:
    with pytest.raises(ContextOverflowError) as caught:
        engine.submit(request("a" * N_CTX), Events())
    assert (caught.value.n_prompt_tokens, caught.value.n_ctx) == (N_CTX, N_CTX)


def test_stats_count_prompts_tokens_and_steps(engine: Engine) -> None:
    assert engine.stats().n_decodes == 0
    run(engine, request("a" * 40, 5))  # in two steps: a forward takes 32 tokens
    run(engine, request("a" * 40, 0))  # 32 of them are cached
    stats = engine.stats()
    assert (stats.n_prompt_tokens, stats.n_cached_tokens) == (40 + 40 - 39, 39)
    assert (stats.n_generated_tokens, stats.n_decodes) == (5, 2 + 4 + 1)
    assert stats.n_busy_slots == stats.n_decodes
    assert stats.n_tokens_max == 44
    assert stats.prompt_seconds > 0.0 < stats.generation_seconds
    assert (stats.n_processing, stats.n_deferred, stats.n_pages_used) == (0, 0, 0)
    assert stats.kv_cache_usage_ratio == 0.0


def test_stats_of_requests_that_run_and_wait(engine: Engine, runner: CountingRunner) -> None:
    runner.gate.clear()
    streams = [Events() for _ in range(3)]
    engine.submit(request("A", 3), streams[0])
    streams[0].wait_for(Started)  # the engine's thread is in its first forward
    for stream in streams[1:]:
        engine.submit(request("A", 3), stream)
    stats = engine.stats()
    assert (stats.n_processing, stats.n_deferred, stats.n_slots) == (1, 2, 2)
    assert (stats.n_pages_used, stats.n_pages, stats.kv_cache_tokens) == (1, 16, 16)
    runner.gate.set()
    for stream in streams:
        stream.all()


def test_slots_show_their_request(engine: Engine, runner: CountingRunner) -> None:
    assert [slot.request for slot in engine.slots()] == [None, None]
    runner.gate.clear()
    events, asked = Events(), request("\x08\x09", 3)
    engine.submit(asked, events)
    events.wait_for(Started)
    busy, idle = engine.slots()
    assert (busy.is_processing, busy.request, busy.n_remain) == (True, asked, 3)
    assert (busy.n_prompt, busy.n_processed, busy.n_decoded) == (2, 0, 0)
    assert not idle.is_processing
    runner.gate.set()
    events.all()
    done = engine.slots()[0]
    assert (done.id, done.n_ctx, done.is_processing) == (0, N_CTX, False)
    assert (done.n_prompt, done.n_processed, done.n_cached, done.n_decoded) == (2, 2, 0, 3)
    assert (done.n_remain, done.has_next_token, done.has_new_line) == (0, False, True)
