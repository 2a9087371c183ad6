"""When a model is asked to guess: as often as it pays, and rarely where it does not."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from gguf_serve.engine.request import Request
from gguf_serve.engine.scheduling.page_cache import PageCache
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Sequence as RunningSequence
from gguf_serve.engine.speculation import asking
from gguf_serve.engine.speculation.account import FIRST, SHARE
from gguf_serve.engine.speculation.model_drafter import ByModel, Wish
from gguf_serve.engine.speculation.proposals import Proposals
from gguf_serve.engine.speculation.speculation import Speculation

TOKEN = 0.010  # seconds of a step of one token


class Clock:
    """Time passes when somebody computes."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now


class Fixed:
    """Guesses the token 1, each for so many seconds."""

    kind, most, wants_states, pages = "draft-simple", 4, False, None

    def __init__(self, clock: Clock, seconds: float) -> None:
        self._clock, self._seconds = clock, seconds
        self.n_calls = self.n_computed = 0

    def follow(self, plan: object, states: object) -> None:
        pass

    def can_guess(self, seq: RunningSequence) -> bool:
        return True

    def n_missing(self, seq: RunningSequence) -> int:
        return max(len(seq.tokens) - self.n_computed, 1)

    def seconds(self, n_missing: int, n_sequences: int, n_tokens: int) -> float:
        return self._seconds * ((n_missing > 0) * (1 + n_missing / 20) + max(n_tokens - 1, 0))

    def catch_up(self, seq: RunningSequence, most: int) -> None:
        self._clock.now += self.seconds(self.n_missing(seq), 1, 0)
        self.n_computed = len(seq.tokens) - 1

    def propose(self, wishes: Sequence[Wish], worth: float = 0.0) -> list[list[int]]:
        self.n_calls += 1
        self._clock.now += self.seconds(1, len(wishes), max(wish.n_tokens for wish in wishes))
        self.n_computed = max(len(wish.seq.tokens) for wish in wishes)
        return [[1] * wish.n_tokens for wish in wishes]

    def use_pause(self) -> None:
        return None


def generated(
    clock: Clock, drafter: Fixed | None, comes: Sequence[int], n_prompt: int = 8
) -> tuple[float, Proposals]:
    """The seconds in which a request's tokens come, of steps whose further tokens take 0.2 times
    as long as the first, and what was guessed."""
    scheduler = Scheduler(PageCache(64, 32), n_slots=1, n_ctx_slot=2048, n_batch=64, n_ubatch=64)
    speculation = Speculation(scheduler, drafter)  # type: ignore[arg-type]
    seq = RunningSequence.from_request(0, Request(tuple(range(n_prompt)), max_tokens=len(comes)))
    made = speculation.by_model()
    proposals = Proposals(seq.request.prompt, [made] if isinstance(made, ByModel) else [], ())
    scheduler.add(seq)
    began, left = clock.now, list(comes)
    while left:
        plan = scheduler.plan()
        assert plan is not None
        speculation.draft(plan, lambda seq: proposals, lambda n: True)
        (chunk,) = plan.chunks
        seconds = TOKEN * (1 + 0.2 * (chunk.count - 1))
        clock.now += seconds
        speculation.note(plan, seconds)
        scheduler.advance(plan)
        if chunk.outputs != "last":
            continue
        for guess in (*chunk.draft, None):
            token = left.pop(0)
            scheduler.append(seq, token)
            proposals.note(token)
            if guess != token or not left:
                break
            proposals.accept()
            scheduler.accept(seq)
    return clock.now - began, proposals


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(asking, "time", found)
    return found


def test_a_fast_model_that_is_right_is_asked_in_every_step(clock: Clock) -> None:
    answer = [1] * 200
    alone, _ = generated(clock, None, answer)
    seconds, proposals = generated(clock, Fixed(clock, TOKEN / 10), answer)
    drafts = proposals.counts.drafts
    assert drafts.n_accepted == drafts.n_tokens > 140
    assert seconds < 0.6 * alone


@pytest.mark.parametrize("seconds", [TOKEN / 10, TOKEN / 2, 2 * TOKEN])
def test_a_model_that_is_wrong_costs_little(clock: Clock, seconds: float) -> None:
    answer = [2, 3] * 1000
    alone, _ = generated(clock, None, answer)
    drafter = Fixed(clock, seconds)
    took, _ = generated(clock, drafter, answer)
    assert drafter.n_calls
    assert took < (1 + SHARE) * alone + FIRST


def test_a_slow_model_is_not_asked_however_right_it_is(clock: Clock) -> None:
    answer = [1] * 1000
    alone, _ = generated(clock, None, answer)
    took, _ = generated(clock, Fixed(clock, TOKEN), answer)
    assert took < (1 + SHARE) * alone + FIRST


def test_a_model_whose_guesses_seem_too_dear_is_tried(clock: Clock) -> None:
    """A prompt that it lacks is no reason not to: it is right more often than it is taken to be."""
    answer = [1] * 1000
    alone, _ = generated(clock, None, answer, n_prompt=40)
    drafter = Fixed(clock, TOKEN * 0.45)
    took, proposals = generated(clock, drafter, answer, n_prompt=40)
    assert proposals.counts.drafts.n_accepted > 200
    assert took < 0.95 * alone


def test_what_is_missing_of_a_long_prompt_must_be_worth_it(clock: Clock) -> None:
    short, long = Fixed(clock, TOKEN / 10), Fixed(clock, TOKEN / 10)
    generated(clock, short, [1] * 8, n_prompt=1000)
    assert not short.n_computed
    generated(clock, long, [1] * 300, n_prompt=1000)
    assert long.n_calls
