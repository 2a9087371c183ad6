"""Grammars are compiled in a child process first: nobody can end a compilation in a thread.

What takes too long or too much memory there is refused; what does not takes as much again in
this process, for certain.
"""

from __future__ import annotations

import functools
import time

import msgspec

from gguf_serve.engine.child import ChildError, Limits, Pool
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.grammar.constraint import Kind
from gguf_serve.engine.grammar.source import refused

LIMITS = Limits(seconds=3.0, memory=96 << 20)  # of one grammar
MOST = 2  # children
MODULE = "gguf_serve.engine.grammar.process"
# What a compilation builds, at most: 140 MB a second for multiples of primes.
BYTES_PER_SECOND, LEAST_BYTES = 150 << 20, 1 << 20
EXAMINED_SECONDS = 10.0  # of all schemas of one request's tools
CACHED_FAULTS = 4096  # schemas and their parts, ...
CACHED_TEXT = 2**14  # ... of no more characters: 64 MiB in all


class Grammar(msgspec.Struct, frozen=True):
    """A message: a grammar to be compiled."""

    kind: Kind
    text: str


class Schema(msgspec.Struct, frozen=True):
    """A message: a schema, as JSON and with its options, that may be one of a grammar's parts."""

    text: str


class Tried(msgspec.Struct, frozen=True, tag=True):
    """A grammar in llguidance's own form, and the seconds that it took to compile."""

    grammar: str
    seconds: float

    @property
    def n_bytes(self) -> int:
        """About how much memory it takes when it is compiled."""
        return min(LEAST_BYTES + int(BYTES_PER_SECOND * self.seconds), LIMITS.memory)


class Refused(msgspec.Struct, frozen=True, tag=True):
    message: str


class Fault(msgspec.Struct, frozen=True, tag=True):
    reason: str | None


Answer = Tried | Refused | Fault
_DECODER = msgspec.msgpack.Decoder(Answer)
encode_answer = msgspec.msgpack.Encoder().encode
_CHILDREN = Pool(MODULE, None, most=MOST, limits=LIMITS, ahead=False)  # of all models


def tried(kind: Kind, text: str) -> Tried:
    """RequestError for a grammar that is malformed, too large, takes too much to compile, or asks
    for what cannot be enforced."""
    try:
        answer: Answer = _DECODER.decode(_CHILDREN.ask(Grammar(kind, text)))
    except ChildError as error:
        raise refused(kind, f"to compile it, {error}") from error
    if isinstance(answer, Refused):
        raise RequestError(answer.message)
    assert isinstance(answer, Tried)
    return answer


def schema_fault(schema: str) -> str | None:
    """Why this schema, as JSON and with its options, cannot be compiled; None if it can.

    RequestError if it takes too much to find out.
    """
    return (_cached_fault if len(schema) <= CACHED_TEXT else _fault)(schema)


def _fault(schema: str) -> str | None:
    try:
        answer: Answer = _DECODER.decode(_CHILDREN.ask(Schema(schema)))
    except ChildError as error:
        raise refused("json_schema", f"to compile it, {error}") from error
    assert isinstance(answer, Fault)
    return answer.reason


_cached_fault = functools.lru_cache(CACHED_FAULTS)(_fault)


class Examination:
    """Looks at the schemas of one request's tools, as long as there is time for it."""

    def __init__(self) -> None:
        self._left = EXAMINED_SECONDS

    def fault(self, schema: str) -> str | None:
        """As ``schema_fault``; RequestError, too, when the request has taken its time."""
        if self._left <= 0.0:
            raise RequestError(
                f"tools: to look at their schemas takes more than {EXAMINED_SECONDS:g} seconds"
            )
        begin = time.monotonic()
        try:
            return schema_fault(schema)
        finally:
            self._left -= time.monotonic() - begin
