"""Engines that guess what a test says, and rules of what that is."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from asking import NO_END, Held, Reply, at_once, random_prompt, submit, told

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.grammar.guide import Guide
from gguf_serve.engine.request import Event, Request
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.speculation import speculation
from gguf_serve.engine.speculation.drafter import Drafter, Forced
from gguf_serve.engine.speculation.lengths import Offer
from gguf_serve.engine.speculation.model_drafter import ModelDrafter, Wish
from gguf_serve.engine.speculation.proposals import Proposals

MOST = 7  # tokens of a guess
Script = Callable[[int], Sequence[int]]  # what is guessed after so many tokens of an answer


class Scripted:
    """Guesses what a rule makes of the tokens that come without guesses."""

    kind, trust = "scripted", 0.9

    def __init__(self, n_prompt: int, guess: Script) -> None:
        self._n_prompt, self._guess = n_prompt, guess

    def propose(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        return self._guess(len(tokens) - self._n_prompt)[:most]

    def judge(self, n_right: int, n_guessed: int) -> None:
        pass


def right(answer: Sequence[int]) -> Script:
    return lambda n: answer[n : n + MOST]


def wrong(answer: Sequence[int]) -> Script:
    return lambda n: [(token + 1) % 128 for token in answer[n : n + MOST]]


def mixed(answer: Sequence[int]) -> Script:
    rng = random.Random(3)
    return lambda n: [
        token if rng.random() < 0.7 else rng.randrange(128)
        for token in answer[n : n + rng.randrange(MOST + 1)]
    ]


SCRIPTS = (right, wrong, mixed)


class GuessingEngine:
    """An engine whose requests guess what a test says, however little that promises."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.script: Script | None = None
        self.made: list[Proposals] = []
        engine._admission.drafting = self  # type: ignore[assignment]

    def proposals(self, request: Request, guide: Guide | None, salt: object) -> Proposals | None:
        if self.script is None:
            return None
        drafters: list[Drafter] = [Scripted(len(request.prompt), self.script)]
        if guide is not None:
            drafters.insert(0, Forced(guide))
        self.made.append(Proposals(request.prompt, drafters, self.engine.tokenizer.eog_ids, guide))
        return self.made[-1]

    def submit(self, script: Script | None, *args: Any, **more: Any) -> Reply:
        self.script = script
        return submit(self.engine, *args, **more)


def check_crowd(guessing: GuessingEngine, prompt: list[int]) -> tuple[Event, int]:
    """Seven seeded requests, four of this prompt, say the same with guesses beside each other as
    without, and all verify some. The last event of one that is cancelled amid them, and how often
    somebody was paused."""
    prompts = [random_prompt(30 + 9 * i, 2) for i in range(3)] + [prompt] * 4
    seeds = [SamplingParams(temperature=0.8, seed=i, logit_bias=NO_END) for i in range(7)]
    asked = list(zip(prompts, seeds, strict=True))
    alone = [told(guessing.submit(None, p, 90, s, n_probs=2)) for p, s in asked]
    before = guessing.engine.stats().n_preempted
    guessing.script, leaving = mixed(alone[0][1]), Held()
    with at_once(guessing.engine):
        endless = guessing.engine.submit(Request(tuple(prompts[0]), seeds[0], 90), leaving)
        replies = [
            guessing.submit(mixed(told_alone[1]), p, 90, s, n_probs=2)
            for told_alone, (p, s) in zip(alone, asked, strict=True)
        ]
    leaving.wait_until_held()
    guessing.engine.cancel(endless)
    leaving.go_on()
    assert [told(reply) for reply in replies] == alone
    assert all(proposals.counts.drafted.total() for proposals in guessing.made[1:])
    return leaving.wait().events[-1], guessing.engine.stats().n_preempted - before


def verify_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is guessed goes into the step, which may wait for its programs."""

    def chosen(offers: Sequence[Offer], most: int, price: object) -> list[int]:
        numbers = list[int]()
        for offer in offers:
            numbers.append(min(offer.n_tokens, most - sum(numbers)))
        return numbers

    monkeypatch.setattr(speculation, "lengths", chosen)
    monkeypatch.setattr(Runner, "is_at_hand", lambda *args: True)


class Overruled:
    """Has a model that guesses say what a rule makes of answers known, after it has guessed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *kinds: type[ModelDrafter]) -> None:
        self.scripts: dict[tuple[int, ...], Script] = {}  # by the prompts
        for kind in kinds:
            monkeypatch.setattr(kind, "propose", self._of(kind.propose))

    def _of(self, propose: Callable[..., list[list[int]]]) -> Callable[..., list[list[int]]]:
        def overruled(
            drafter: ModelDrafter, wishes: Sequence[Wish], worth: float
        ) -> list[list[int]]:
            found = propose(drafter, wishes, worth)
            for i, (seq, n_tokens) in enumerate(wishes):
                if (script := self.scripts.get(seq.request.prompt)) is not None:
                    found[i] = list(script(seq.n_generated)[:n_tokens])
            return found

        return overruled
