"""Who is next: each client in turn, of its requests each in turn, of those the first to arrive.

Integers, lists and dictionaries only. A client that has less of the slots comes before one that
has more, and among equals the one whose turn was longer ago, after all of a lower priority; so a
batch of thousands of prompts
is one turn among others, and nobody who comes later is served for ever in somebody's place.
"""

from __future__ import annotations

from bisect import insort
from collections import Counter
from collections.abc import Collection, Iterator
from operator import attrgetter

from msgspec import Struct, field

from gguf_serve.engine.scheduling.sequence import Sequence

_arrival = attrgetter("arrival")
_REMEMBERED = 64  # clients whose last prompts are known, beside those of the step


class _Turns(Struct):
    """What waits of one client, by the number of its request, and when each had its turn."""

    last: int
    groups: dict[int, dict[int, Sequence]] = field(default_factory=dict)
    last_of: dict[int, int] = field(default_factory=dict)
    priority_of: dict[int, int] = field(default_factory=dict)


class WaitingLine:
    """The sequences that wait: those that were paused, by arrival, then the clients' turns."""

    def __init__(self) -> None:
        self._paused: list[Sequence] = []
        self._clients: dict[str, _Turns] = {}
        self._last: dict[str, int] = {}  # of clients that have a slot
        self._clock = 0
        self.n_new = 0  # those without a slot; counted, since other threads ask

    def __len__(self) -> int:
        return self.n_new + len(self._paused)

    @property
    def n_paused(self) -> int:
        """Of those that wait, how many have a slot already."""
        return len(self._paused)

    def add(self, seq: Sequence) -> None:
        if seq.slot >= 0:
            insort(self._paused, seq, key=_arrival)
            return
        self._clock += 1
        self.n_new += 1
        client, request = seq.request.client, seq.request.batch
        turns = self._clients.get(client)
        if turns is None:
            last = self._last.get(client, self._clock)
            turns = self._clients[client] = _Turns(last)
        if request not in turns.groups:
            turns.groups[request] = {}
            turns.last_of[request] = self._clock
            turns.priority_of[request] = seq.request.priority
        turns.groups[request][seq.id] = seq

    def remove(self, seq: Sequence) -> None:
        """Take out one that is in the line."""
        if seq.slot >= 0:
            self._paused.remove(seq)
            return
        client, request = seq.request.client, seq.request.batch
        turns = self._clients[client]
        del turns.groups[request][seq.id]
        self.n_new -= 1
        if not turns.groups[request]:
            del turns.groups[request], turns.last_of[request], turns.priority_of[request]
        if not turns.groups:
            del self._clients[client]

    def take(self, seq: Sequence, running: Collection[Sequence]) -> None:
        """Take out the one whose turn it is; the next one is somebody else's, if others wait."""
        self._clock += 1
        client, request = seq.request.client, seq.request.batch
        turns = self._clients.get(client)
        if seq.slot < 0 and turns is not None:
            turns.last = turns.last_of[request] = self._clock
        # A client that comes back while it is served goes on where it was.
        kept = {other.request.client for other in running}
        self._last = {name: last for name, last in self._last.items() if name in kept}
        self._last[client] = self._clock
        self.remove(seq)

    def has_newcomer(self, running: Collection[Sequence]) -> bool:
        """Whether a client waits of which nothing is served."""
        if not self._clients:
            return False
        served = {seq.request.client for seq in running}
        return any(
            client not in served and min(turns.priority_of.values()) <= 0
            for client, turns in self._clients.items()
        )

    def in_turn(self, running: Collection[Sequence]) -> Iterator[Sequence]:
        """Who may go first, second and so on; ``running`` are those that are served."""
        yield from tuple(self._paused)
        of_client = Counter(seq.request.client for seq in running)
        of_request = Counter((seq.request.client, seq.request.batch) for seq in running)

        def client_turn(client: str) -> tuple[int, int]:
            return of_client[client], self._clients[client].last

        def request_turn(named: tuple[str, int]) -> tuple[int, int, int]:
            client, request = named
            turns = self._clients[client]
            return turns.priority_of[request], of_request[named], turns.last_of[request]

        levels = {
            yielding(p) for turns in self._clients.values() for p in turns.priority_of.values()
        }
        for level in sorted(levels):
            for client in sorted(self._clients, key=client_turn):
                turns = self._clients[client]
                there = [
                    (client, request)
                    for request, priority in turns.priority_of.items()
                    if yielding(priority) == level
                ]
                for _, request in sorted(there, key=request_turn):
                    yield from tuple(turns.groups[request].values())


def yielding(priority: int) -> int:
    """To how much of others a request yields. Nobody can go ahead of other clients: a priority
    below 0 counts among the requests of its own."""
    return max(priority, 0)


class PromptTurns:
    """Whose prompt goes on in the next step: clients in turn, of each the first to arrive."""

    def __init__(self) -> None:
        self._last: dict[str, int] = {}
        self._clock = 0

    def sort(self, prompts: list[Sequence]) -> None:
        """Bring prompts, which are by arrival, into the order of their turns."""
        if len(prompts) > 1:
            prompts.sort(key=lambda seq: self._last.get(seq.request.client, 0))

    def note(self, served: Collection[Sequence]) -> None:
        """Take note of whose prompts have had a part in a step."""
        self._clock += 1
        clients = {seq.request.client for seq in served}
        if len(self._last) > len(clients) + _REMEMBERED:
            self._last.clear()
        self._last |= dict.fromkeys(clients, self._clock)
