"""Conversations find what they have computed, as if there were one engine."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence

from asking import GREEDY, random_prompt, submit
from replicas_here import Replicas

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.request import Request
from gguf_serve.server.replicas.router import Place, Route, Router

CONVERSATIONS, TURNS = 8, 6


class RoundRobin(Router):
    """What balancers do that know nothing of prompts."""

    def __init__(self) -> None:
        super().__init__()
        self._turns: Iterator[int] = itertools.count()

    def choose(self, places: Sequence[Place], request: Request, session: str = "") -> Route:
        return Route(places[next(self._turns) % len(places)].id, "load", 0, [])


def n_cached(engines: list[Engine], salt: str, router: Router | None = None) -> int:
    """Prompt tokens that were cached, of all conversations: after a prompt that they share, each
    says something in every turn, all at once and in any order."""
    replicas = Replicas(engines)
    if router is not None:
        replicas.front._router = router
    orders = random.Random(1)
    said = {i: random_prompt(70, 0) for i in range(CONVERSATIONS)}
    n = 0
    for turn in range(TURNS):
        asked = {}
        for i in orders.sample(range(CONVERSATIONS), CONVERSATIONS):
            said[i] = [*said[i], *random_prompt(50, 100 * i + turn)]
            asked[i] = submit(replicas.front, said[i], 10, GREEDY, cache_salt=salt)  # type: ignore[arg-type]
        for i, reply in asked.items():
            n += reply.wait().end.timings.cache_n
            said[i] = [*said[i], *reply.tokens]
    replicas.close()
    return n


def test_conversations_stay_where_they_are(engines: list[Engine]) -> None:
    one, two, by_turns = (
        n_cached(engines[:1], "one"), n_cached(engines, "two"),
        n_cached(engines, "by turns", RoundRobin()),
    )  # fmt: skip
    assert two >= 0.95 * one > 0
    assert by_turns < 0.9 * two
