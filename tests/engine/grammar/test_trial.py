"""Grammars that are short and take long: refused with the reason, in time and memory that are
bounded, and nobody else notices."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest
from byte_vocabulary import N_VOCAB, ByteVocabulary

from gguf_serve.engine import child
from gguf_serve.engine.chat.enforceable import enforceable
from gguf_serve.engine.child import Limits, Pool
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.grammar import compile as grammar
from gguf_serve.engine.grammar import trial as grammar_trial
from gguf_serve.engine.grammar.compile import Grammars
from gguf_serve.engine.grammar.constraint import Constraint, Kind
from gguf_serve.engine.grammar.trial import Examination

PRIMES = [99991, 100003, 100019, 100043, 100049, 100057, 100069, 100103]
MULTIPLES = {
    "type": "object",
    "properties": {f"p{n}": {"type": "integer", "multipleOf": n} for n in PRIMES},
    "required": [f"p{n}" for n in PRIMES],
}
COMMON_MULTIPLES = {"allOf": [{"type": "integer", "multipleOf": n} for n in (1009, 1013)]}
PATTERNS = {
    "type": "object",
    "patternProperties": {f"^p{i}x.*$": {"type": "integer"} for i in range(500)},
}


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """One second and 32 MiB for a grammar."""
    limits = Limits(seconds=1.0, memory=32 << 20)
    children = Pool(grammar_trial.MODULE, None, most=1, limits=limits, ahead=False)
    monkeypatch.setattr(child, "CLOCK", 100)  # the processor's time is what ends them
    monkeypatch.setattr(child, "SETUP_CLOCK", 100)
    monkeypatch.setattr(grammar_trial, "LIMITS", limits)
    monkeypatch.setattr(grammar_trial, "_CHILDREN", children)
    yield
    children.close()


def processor_seconds() -> float:
    """Of this process and of its children that have ended."""
    return sum(os.times()[:4])


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("json_schema", json.dumps(MULTIPLES)),
        pytest.param("json_schema", json.dumps(COMMON_MULTIPLES), marks=pytest.mark.slow),
        ("json_schema", json.dumps(PATTERNS)),
        pytest.param("lark", "start: %json " + json.dumps(PATTERNS), marks=pytest.mark.slow),
    ],
)  # fmt: skip
def test_what_takes_too_much_is_refused(impatient: None, kind: Kind, text: str) -> None:
    grammars = Grammars(ByteVocabulary(), N_VOCAB)
    begin = processor_seconds()
    with pytest.raises(RequestError, match=r"to compile it, it took more than (1 sec|32 M)"):
        grammars.compiled(Constraint(kind, text))
    assert processor_seconds() - begin < 10
    assert grammars.matcher(Constraint("regex", "a")).consume_token(ord("a"))


class Clock:
    """Time passes when a schema is examined."""

    now = 0.0

    def monotonic(self) -> float:
        return self.now

    def examine(self, schema: str) -> None:
        self.now += 0.0625  # of the 0.2 seconds that there are


def test_tools_are_no_way_around(impatient: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(RequestError, match="it took more than"):
        enforceable(PATTERNS)
    clock = Clock()
    monkeypatch.setattr(grammar_trial, "time", clock)
    monkeypatch.setattr(grammar_trial, "EXAMINED_SECONDS", 0.2)
    monkeypatch.setattr(grammar_trial, "schema_fault", clock.examine)
    examination = Examination()
    for _ in range(4):
        examination.fault("{}")
    with pytest.raises(RequestError, match=r"tools: .* more than 0.2 seconds"):
        examination.fault("{}")


def sized(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    """Have every grammar count as so large."""
    monkeypatch.setattr(grammar_trial.Tried, "n_bytes", property(lambda self: n_bytes))


def regex(i: int) -> Constraint:
    return Constraint("regex", f"x{i}")


def test_grammars_are_kept_by_their_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    sized(monkeypatch, grammar.CACHED_BYTES // 3)
    grammars = Grammars(ByteVocabulary(), N_VOCAB)
    first = grammars.compiled(regex(0))
    assert grammars.compiled(regex(0)) is first
    for i in range(1, 4):
        grammars.compiled(regex(i))
    assert grammars.compiled(regex(3)) is grammars.compiled(regex(3))
    assert grammars.compiled(regex(0)) is not first


def test_what_requests_have_is_bounded_too(monkeypatch: pytest.MonkeyPatch) -> None:
    sized(monkeypatch, grammar.MAX_BYTES // 4)
    grammars = Grammars(ByteVocabulary(), N_VOCAB)
    held: list[Any] = [grammars.compiled(regex(i)) for i in range(3)]
    with pytest.raises(RequestError, match=r"192 MiB, this one 64 MiB more, and at most 256 MiB"):
        grammars.compiled(regex(3))
    held.pop()
    grammars.compiled(regex(3))
