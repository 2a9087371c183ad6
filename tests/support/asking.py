"""Requests to the engine of a small random model, whose 128 tokens are the ASCII characters."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
from msgspec.structs import replace

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.forward.stages import Leading
from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.loading.loader import Model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Delta, Event, Failed, Finished, Request, Started, TokenScore
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.serving.disk import DiskOptions
from gguf_serve.engine.speculation import asking, speculation
from gguf_serve.engine.speculation.account import Account
from gguf_serve.engine.speculation.lengths import Offer
from gguf_serve.engine.speculation.models.timed_steps import TimedSteps
from gguf_serve.engine.stats import DiskStats

SECONDS = 120  # until a test gives up on the engine
GREEDY = SamplingParams(temperature=0)
# With a cache on disk:
DISK = EngineOptions(
    n_ctx=1024, n_parallel=2, n_ubatch=64, n_gpu_layers=0, kernel_family="simd",
    cache_disk_min_tokens=64,
)  # fmt: skip
N_TOKENS = 330  # ten full pages and the beginning of one
N_PAGES = 10
Start = Callable[..., Engine]
NO_END = ((0, float("-inf")),)
SCHEMA = {
    "type": "object",
    "properties": {"kind": {"enum": ["left", "right"]}, "is_it_open": {"type": "boolean"}},
    "required": ["kind", "is_it_open"],
    "additionalProperties": False,
}
OBJECT = Constraint("json_schema", json.dumps(SCHEMA))
LETTERS = Constraint("regex", "[a-f]{3}(-[a-f]{3}){9}")
# What a request may ask for, by a name.
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"sampling": GREEDY},
    "seed": {"sampling": SamplingParams(temperature=0.8, seed=1)},
    "penalties": {
        "sampling": SamplingParams(
            temperature=0.8, seed=2, repeat_penalty=1.3, frequency_penalty=0.2, presence_penalty=0.1
        )
    },
    "greedy penalties": {"sampling": SamplingParams(temperature=0.0, repeat_penalty=1.3)},
    "dry": {"sampling": SamplingParams(temperature=0.8, seed=3, dry_multiplier=0.8)},
    "xtc": {"sampling": SamplingParams(temperature=0.8, seed=4, xtc_probability=0.5)},
    "mirostat": {"sampling": SamplingParams(temperature=0.8, seed=5, mirostat=2)},
    "mirostat 1": {"sampling": SamplingParams(temperature=0.8, seed=5, mirostat=1)},
    "adaptive": {"sampling": SamplingParams(temperature=1.0, seed=6, adaptive_target=0.3)},
    "schema": {"sampling": SamplingParams(temperature=0.8, seed=7), "constraint": OBJECT},
    "regex": {"sampling": SamplingParams(temperature=0.8, seed=8), "constraint": LETTERS},
    "after sampling": {
        "sampling": SamplingParams(temperature=0.8, seed=9), "post_sampling_probs": True
    },
    "stop": {"sampling": SamplingParams(temperature=1.5, seed=10), "stop": tuple("abcdefghij")},
}  # fmt: skip


class CharacterDecoder:
    """Every token is a whole character."""

    def push(self, token: int) -> str:
        return chr(token)

    def flush(self) -> str:
        return ""


class CharacterTokenizer:
    """Token i is the character i."""

    n_vocab = 128

    def __init__(self, eog_ids: Iterable[int] = ()) -> None:
        self.eog_ids = frozenset(eog_ids)
        self.eos_id = min(self.eog_ids, default=None)
        self.eot_id = None

    def is_special(self, token_id: int) -> bool:
        return False

    def piece(self, token_id: int, special: bool = True) -> bytes:
        return chr(token_id).encode()

    def encode(
        self, text: str, *, add_special: bool = True, parse_special: bool = True
    ) -> list[int]:
        return list(text.encode("ascii"))

    def decoder(self, special: bool = False, shown: Collection[int] = ()) -> CharacterDecoder:
        return CharacterDecoder()


class Reply:
    """The events of one request."""

    def __init__(self) -> None:
        self.events: list[Event] = []
        self._ended = threading.Event()

    def __call__(self, event: Event) -> None:
        self.events.append(event)
        if isinstance(event, Finished | Failed):
            self._ended.set()

    def wait(self) -> Reply:
        assert self._ended.wait(SECONDS), f"no end after {self.events}"
        return self

    def all(self, kind: type) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    @property
    def end(self) -> Finished:
        """The last event; there is no other end."""
        assert len(self.all(Finished)) == 1
        assert isinstance(self.events[-1], Finished)
        return self.events[-1]

    @property
    def text(self) -> str:
        return "".join(delta.text for delta in self.all(Delta))

    @property
    def tokens(self) -> list[int]:
        return [token for delta in self.all(Delta) for token in delta.tokens]

    @property
    def scores(self) -> list[TokenScore]:
        return [score for delta in self.all(Delta) for score in delta.scores]

    @property
    def n_cached(self) -> int:
        return self.all(Started)[0].n_cached


class Held(Reply):
    """Keeps the engine's thread where so many tokens have come, until it may go on."""

    def __init__(self, n_tokens: int = 1) -> None:
        super().__init__()
        self._n_tokens = n_tokens
        self._reached, self._goes_on = threading.Event(), threading.Event()

    def __call__(self, event: Event) -> None:
        super().__call__(event)
        if len(self.tokens) >= self._n_tokens:
            self._reached.set()
            assert self._goes_on.wait(SECONDS)

    def wait_until_held(self) -> None:
        assert self._reached.wait(SECONDS), f"no {self._n_tokens} tokens in {self.events}"

    def go_on(self) -> None:
        self._goes_on.set()


@contextmanager
def at_once(engine: Engine) -> Iterator[None]:
    """What is submitted meanwhile comes to the engine's thread together, however long that
    takes."""
    all_are_there = threading.Event()

    def wait() -> None:
        assert all_are_there.wait(SECONDS)

    engine._between_steps(wait)
    try:
        yield
    finally:
        all_are_there.set()


def submit(
    engine: Engine,
    prompt: Iterable[int],
    max_tokens: int = 12,
    sampling: SamplingParams = GREEDY,
    **fields: object,
) -> Reply:
    reply = Reply()
    engine.submit(Request(tuple(prompt), sampling, max_tokens, **fields), reply)
    return reply


def ask(engine: Engine, prompt: Iterable[int], *arguments: object, **fields: object) -> Reply:
    """The whole answer to a request."""
    return submit(engine, prompt, *arguments, **fields).wait()


def engine_of(
    model: Model,
    eog_ids: Iterable[int] = (),
    disk: DiskOptions | None = None,
    replacements: Callable[[], Sequence[Leading]] | None = None,
) -> Engine:
    tokenizer: Any = CharacterTokenizer(eog_ids)
    return Engine(replace(model, tokenizer=tokenizer), disk, replacements)


def assert_same_logits(shared: Reply, alone: Reply) -> None:
    """Log-probabilities of all tokens, at every step."""
    assert shared.tokens == alone.tokens
    for a, b in zip(shared.scores, alone.scores, strict=True):
        left, right = (np.array([p for _, _, p in sorted(s.top)]) for s in (a, b))
        assert len(left) == 128
        assert np.abs(left - right).max() < 1e-3


def random_prompt(n: int, seed: int = 0) -> list[int]:
    return np.random.default_rng([n, seed]).integers(0, 128, n).tolist()


def told(reply: Reply) -> list[Any]:
    """All of a reply that must not depend on guesses."""
    assert isinstance(reply.wait().events[-1], Finished), reply.events[-1]
    return [reply.text, reply.tokens, reply.scores, reply.end.reason, reply.end.truncated]


def guess_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    """Models guess however little that promises, and all of it is verified."""

    def chosen(offers: Sequence[Offer], most: int, price: object) -> list[int]:
        return [min(offer.n_tokens, most // len(offers)) for offer in offers]

    monkeypatch.setattr(speculation, "lengths", chosen)
    monkeypatch.setattr(
        asking.Asking, "_n_tokens", lambda self, askers, n, room: min(4, room // len(askers))
    )
    monkeypatch.setattr(asking.Asking, "_worth", lambda *args: 0.0)
    monkeypatch.setattr(Account, "has", lambda *args: True)
    monkeypatch.setattr(TimedSteps, "seconds", lambda *args: 0.0)


def disk(engine: Engine) -> DiskStats:
    stats = engine.stats().disk
    assert stats is not None
    return stats


def wait_for(engine: Engine, n_written: int) -> None:
    """Until it has written so many files."""
    end = time.monotonic() + SECONDS
    while disk(engine).n_written < n_written:
        assert time.monotonic() < end, f"{disk(engine).n_written} files, not {n_written}"
        time.sleep(0.01)
    assert disk(engine).n_written == n_written


def forget(engine: Engine, *prompts: list[int]) -> None:
    """In the engine's thread, which may still look up what it is to write."""

    def clear() -> None:
        engine._scheduler.cache.clear()
        if engine._scheduler.checkpoints is not None:
            for prompt in prompts:
                engine._scheduler.checkpoints.forget(prompt, None, 0)

    engine._between_steps(clear).result(SECONDS)


def kept(engine: Engine, seed: int) -> list[int]:
    """A prompt that has been computed and is in the folder, and not in memory any more."""
    prompt, n = random_prompt(N_TOKENS, seed), disk(engine).n_written
    ask(engine, prompt, 1)
    wait_for(engine, n + N_PAGES)
    forget(engine)
    return prompt


def scores(reply: Reply) -> list[object]:
    return [(score.id, score.logprob, score.top) for score in reply.scores]
