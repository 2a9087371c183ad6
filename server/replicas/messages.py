"""What a front and a host say to each other over a channel, as pickled lists of these.

A front is a server without weights, a host has an engine. Numbers are a front's: each of its
requests and calls has its own on a channel.
"""

from __future__ import annotations

from typing import Any, Literal

from msgspec import Struct

from gguf_serve.engine.options import AdapterState, ModelInfo
from gguf_serve.engine.request import Event, Request
from gguf_serve.engine.stats import EngineStats

Method = Literal[
    "slots", "load_adapter", "unload_adapter", "save_slot", "restore_slot", "erase_slot"
]


class Submit(Struct, frozen=True):
    """To a host: serve a request, every event of which comes as ``Heard``."""

    number: int
    request: Request


class Cancel(Struct, frozen=True):
    """To a host."""

    number: int


class EndReasoning(Struct, frozen=True):
    """To a host."""

    number: int


class Call(Struct, frozen=True):
    """To a host: call a method of its engine, and send the result as ``Answer``."""

    number: int
    method: Method
    arguments: tuple[Any, ...] = ()


class Beat(Struct, frozen=True):
    """From both at least once a second, so that silence tells that the other is gone."""


class State(Beat, frozen=True):
    """A host's beat: what is new of its engine."""

    stats: EngineStats
    fault: str


class Hello(Struct, frozen=True):
    """A host's first message: what it serves."""

    info: ModelInfo
    n_ctx: int  # of a slot
    n_slots: int
    adapters: tuple[AdapterState, ...]  # of its start
    state: State


class Heard(Struct, frozen=True):
    """From a host: an event of a request."""

    number: int
    event: Event


class Answer(Struct, frozen=True):
    """From a host: what a call gave, or the error that it raised, or a request's refusal."""

    number: int
    value: Any = None
    error: Exception | None = None


class Draining(Struct, frozen=True):
    """From a host that is to end: it takes nothing new."""
