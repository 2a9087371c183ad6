"""What a front and a host say to each other over a channel, as pickled lists of these.

A front is a server without weights, a host has an engine. Numbers are a front's: each of its
requests and calls has its own on a channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from gguf_serve.engine.options import AdapterState, ModelInfo
from gguf_serve.engine.request import Event, Request
from gguf_serve.engine.stats import EngineStats

Method = Literal["slots", "set_adapters", "save_slot", "restore_slot", "erase_slot"]


@dataclass(frozen=True, slots=True)
class Submit:
    """To a host: serve a request, every event of which comes as ``Heard``."""

    number: int
    request: Request


@dataclass(frozen=True, slots=True)
class Cancel:
    """To a host."""

    number: int


@dataclass(frozen=True, slots=True)
class EndReasoning:
    """To a host."""

    number: int


@dataclass(frozen=True, slots=True)
class Call:
    """To a host: call a method of its engine, and send the result as ``Answer``."""

    number: int
    method: Method
    arguments: tuple[Any, ...] = ()


@dataclass(frozen=True, slots=True)
class Beat:
    """From both at least once a second, so that silence tells that the other is gone."""


@dataclass(frozen=True, slots=True)
class State(Beat):
    """A host's beat: what is new of its engine."""

    stats: EngineStats
    adapters: tuple[AdapterState, ...]
    fault: str


@dataclass(frozen=True, slots=True)
class Hello:
    """A host's first message: what it serves."""

    info: ModelInfo
    n_ctx: int  # of a slot
    n_slots: int
    state: State


@dataclass(frozen=True, slots=True)
class Heard:
    """From a host: an event of a request."""

    number: int
    event: Event


@dataclass(frozen=True, slots=True)
class Answer:
    """From a host: what a call gave, or the error that it raised, or a request's refusal."""

    number: int
    value: Any = None
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class Draining:
    """From a host that is to end: it takes nothing new."""
