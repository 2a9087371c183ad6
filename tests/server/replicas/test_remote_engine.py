"""Two engines behind one front: what one loses, the other goes on with."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
from asking import GREEDY, NO_END, SAMPLINGS, Reply, random_prompt, submit
from msgspec import structs
from replicas_here import KEY, Replicas

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.errors import ContextOverflowError, RequestError
from gguf_serve.engine.request import (
    Delta,
    Embedded,
    Embedding,
    Failed,
    Finished,
    PromptScored,
    Request,
    Scoring,
    Started,
)
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.server.dialects.llama_server.metrics import exposition
from gguf_serve.server.http.flight import Flight
from gguf_serve.server.replicas import channel, remote_engine
from gguf_serve.server.replicas.channel import connected
from gguf_serve.server.replicas.host import Host
from gguf_serve.server.replicas.link import Link
from gguf_serve.server.replicas.messages import State

PROMPT = random_prompt(100, 1)
SEEDED = SamplingParams(temperature=0.8, seed=1, logit_bias=NO_END)


@pytest.fixture
def replicas(engines: list[Engine]) -> Iterator[Replicas]:
    made = Replicas(engines)
    yield made
    made.close()


class Cutting(Reply):
    """Kills the host that serves after so many deltas, and before many more."""

    def __init__(self, replicas: Replicas, after: int) -> None:
        super().__init__()
        self._replicas, self._after, self.killed = replicas, [after], threading.Event()
        self._goes_on = replicas.brake(after + 3)

    def __call__(self, event: Any) -> None:
        super().__call__(event)
        if self._after and len(self.all(Delta)) >= self._after[0] and isinstance(event, Delta):
            del self._after[0]
            # Not in the link's own thread, which hears of the loss.
            threading.Thread(target=self._kill).start()

    def _kill(self) -> None:
        self._replicas.kill(self._replicas.serving())
        self._goes_on.set()
        self.killed.set()


def told(reply: Reply) -> list[Any]:
    end = reply.wait().end
    return [reply.text, reply.tokens, reply.scores, end.reason, end.stopping_word, end.truncated]


def test_everything_passes_as_from_the_engine_itself(
    engines: list[Engine], replicas: Replicas
) -> None:
    for name, asked in SAMPLINGS.items():
        here = submit(engines[0], PROMPT, 30, n_probs=2, **asked)
        there = submit(replicas.front, PROMPT, 30, n_probs=2, **asked)  # type: ignore[arg-type]
        assert told(there) == told(here), name
        assert len(there.all(Started)) == 1
    for wants in (Embedding("mean"), Scoring(3)):
        here, there = (
            submit(to, PROMPT, 5, GREEDY, wants=wants).wait()  # type: ignore[arg-type]
            for to in (engines[0], replicas.front)
        )
        for kind in (Embedded, PromptScored, Delta):
            assert [
                structs.replace(e, mark=None) if kind is Delta else e for e in there.all(kind)
            ] == (here.all(kind))
    until = time.monotonic() + 30
    while (stats := replicas.front.stats()).n_generated_tokens < 300:
        assert time.monotonic() < until  # each engine tells once a second
        time.sleep(0.05)
    assert stats.n_slots == 8
    text = exposition(stats).decode()
    assert "llamacpp:engines 2.0" in text
    n_routed = {
        tuple(line.split('"')[1::2]): float(line.split()[-1])
        for line in text.splitlines()
        if line.startswith("llamacpp:requests_routed_total{")
    }
    assert {engine for engine, _ in n_routed} <= {"host 0", "host 1"}  # one may have had all
    assert sum(n for (_, reason), n in n_routed.items() if reason == "prefix") > 0
    assert sum(n_routed.values()) == len(SAMPLINGS) + 2
    assert [slot.id for slot in replicas.front.slots()] == list(range(8))


def ask(replicas: Replicas, reply: Reply, n: int, **asked: Any) -> Any:
    request = Request(tuple(PROMPT), max_tokens=n, **{"sampling": SEEDED, **asked})
    return replicas.front.submit(request, reply)


def test_a_lost_engine_s_requests_go_on(engines: list[Engine]) -> None:
    """In the middle of their text, and where the prompt's scores have been told already."""
    for asked in (
        SAMPLINGS["seed"], SAMPLINGS["mirostat"], {"sampling": SEEDED, "wants": Scoring(1)},
    ):  # fmt: skip
        replicas = Replicas(engines)
        alone = submit(engines[0], PROMPT, 400, n_probs=2, **asked)
        reply = Cutting(replicas, 5)
        ask(replicas, reply, 400, n_probs=2, **asked)
        assert told(reply) == told(alone)
        assert reply.killed.wait(20)
        assert len(reply.all(Started)) == 1
        assert len(reply.all(PromptScored)) == len(alone.all(PromptScored))
        assert reply.end.timings.predicted_n == alone.end.timings.predicted_n
        assert replicas.front.n_moved == 1
        assert {engine for _, engine in replicas.front.routed} == {"", *replicas.hosts}
        replicas.close()


def test_many_requests_and_one_loss_after_another(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the two is lost and comes back, three times; nothing is lost with it."""
    monkeypatch.setattr(remote_engine, "TRIES", 6)  # they may be lost before a token
    replicas = Replicas(engines)
    asked = [
        {"sampling": replace(SEEDED, seed=i), "prompt": random_prompt(60, i % 5)} for i in range(16)
    ]
    alone = [told(submit(engines[0], max_tokens=120, **one)) for one in asked]
    replies, goes_on = [Reply() for _ in asked], replicas.brake(40)
    for one, reply in zip(asked, replies, strict=True):
        replicas.front.submit(Request(tuple(one["prompt"]), one["sampling"], 120), reply)
    for i in range(6):
        time.sleep(0.1)
        name = f"host {i % 2}"
        engine = replicas.hosts[name].engine
        replicas.kill(name)
        goes_on.set()
        replicas.hosts[name] = Host(engine, ("127.0.0.1", 0), KEY)
        replicas.know()
        replicas.wait_for(2)
    assert [told(reply) for reply in replies] == alone
    assert replicas.front.n_moved > 0
    replicas.close()


def test_without_an_engine_requests_wait_for_one(engines: list[Engine]) -> None:
    replicas = Replicas(engines[:1])
    reply, cancelled = Cutting(replicas, 5), Reply()
    ask(replicas, reply, 300)
    assert reply.killed.wait(20)
    replicas.wait_for(0)
    assert not replicas.front.healthy
    assert replicas.front.fault == "no engine can be reached"
    replicas.front.cancel(ask(replicas, cancelled, 5))
    assert cancelled.wait().end.reason == "cancelled"
    assert not isinstance(reply.events[-1], Finished)
    replicas.hosts["host 0"] = Host(engines[0], ("127.0.0.1", 0), KEY)
    replicas.know()
    assert told(reply) == told(submit(engines[0], PROMPT, 300, SEEDED))
    replicas.close()


def test_patience_and_tries_have_an_end(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    replicas = Replicas(engines[:1], patience=0.5)
    reply = Cutting(replicas, 5)
    ask(replicas, reply, 300)
    end = reply.wait().events[-1]
    assert end == Failed("the engine host 0 is gone, and none has come for 0.5 seconds")
    replicas.close()

    monkeypatch.setattr(remote_engine, "TRIES", 0)
    replicas = Replicas(engines)
    reply = Cutting(replicas, 5)
    ask(replicas, reply, 300)
    end = reply.wait().events[-1]
    assert isinstance(end, Failed)
    assert "is gone, and 0 others" in end.message
    replicas.close()


def test_a_silent_engine_is_a_lost_one(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a link that is down, where no connection ends."""
    monkeypatch.setattr(channel, "BEAT", 0.05)
    replicas = Replicas(engines)
    reply, goes_on = Reply(), replicas.brake(5)
    ask(replicas, reply, 400)
    name = replicas.serving()
    replicas.front._links[name]._channel._silence = 0.3
    time.sleep(0.2)  # it is known from the next message on
    for front in list(replicas.hosts[name]._fronts):
        monkeypatch.setattr(front._channel._connection, "_send", lambda *_: time.sleep(5))
    goes_on.set()
    assert told(reply) == told(submit(engines[0], PROMPT, 400, SEEDED))
    assert replicas.front.n_moved == 1
    replicas.close()


def test_only_the_requests_of_others_are_as_of_the_last_beat(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its own a front knows of at any time."""
    monkeypatch.setattr(channel, "BEAT", 60.0)
    monkeypatch.setattr(channel, "SILENCE", 120.0)
    replicas = Replicas(engines[:1])
    reply, goes_on = Reply(), replicas.brake(1)
    ask(replicas, reply, 3)
    (link,) = replicas.front._links.values()
    assert link.state is not None
    stats = structs.replace(link.state.stats, n_processing=2, n_deferred=1)
    link._hear(State(stats, ""))
    assert link.place.n_requests == 3
    goes_on.set()
    reply.wait()
    assert link.place.n_requests == 2
    replicas.close()


def test_a_draining_engine_gets_nothing_new(engines: list[Engine], replicas: Replicas) -> None:
    first, goes_on = Reply(), replicas.brake(1)
    ask(replicas, first, 200)
    name = replicas.serving()
    replicas.hosts[name].drain()
    replicas.wait_for(1)
    goes_on.set()
    for _ in range(4):
        assert ask_whole(replicas, 5).end.reason == "limit"
        assert {link.id for link in replicas.front._up} == set(replicas.hosts) - {name}
    assert told(first) == told(submit(engines[0], PROMPT, 200, SEEDED))
    assert replicas.front.n_moved == 0


def ask_whole(replicas: Replicas, n: int, **asked: Any) -> Reply:
    reply = Reply()
    ask(replicas, reply, n, **asked)
    return reply.wait()


def test_what_is_wrong_is_told(replicas: Replicas) -> None:
    reply = Reply()
    replicas.front.submit(Request((1, 2, 500), max_tokens=3), reply)
    assert reply.wait().events == [Failed("token 500 is not in the vocabulary of 128", True)]
    with pytest.raises(ContextOverflowError):
        replicas.front.submit(Request((1,) * 2000), Reply())
    with pytest.raises(RequestError, match="temperature"):
        replicas.front.submit(Request((1,), SamplingParams(temperature=float("nan"))), Reply())


def test_nobody_without_the_key_is_heard(replicas: Replicas) -> None:
    address = next(iter(replicas.hosts.values())).address
    with pytest.raises(OSError, match="has not proved its key"):
        connected(address, b"another")
    with socket.create_connection(address) as plain:
        plain.sendall(b"GET / HTTP/1.1\r\n\r\n" * 4)
        plain.settimeout(10)
        with suppress(ConnectionResetError):
            while plain.recv(4096):
                pass
    assert ask_whole(replicas, 3).end.reason == "limit"


def test_cancelling_and_slots_by_number(replicas: Replicas) -> None:
    reply, goes_on = Reply(), replicas.brake(1)
    ticket = ask(replicas, reply, 900)
    host = replicas.hosts[replicas.serving()]
    replicas.front.cancel(ticket)
    until = time.monotonic() + 30
    while host.n_requests:
        assert time.monotonic() < until
        time.sleep(0.01)
    goes_on.set()
    assert reply.wait().end.reason == "cancelled"
    for slot in (1, 6):
        assert ask_whole(replicas, 3, id_slot=slot).all(Started)[0].id_slot == slot % 4
    states = {state.id: state.n_decoded for state in replicas.front.slots()}
    assert states[1] == states[6] == 3
    assert replicas.front.erase_slot(6).result(20) > 0


def test_a_request_is_cancelled_while_it_is_being_sent(
    engines: list[Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the choice of its engine and the moment at which the link knows of it."""
    replicas = Replicas(engines[:1])
    submitted = Link.submit

    def slow(link: Link, flight: Flight, request: Request) -> bool:
        replicas.front.cancel(flight)
        return submitted(link, flight, request)

    monkeypatch.setattr(Link, "submit", slow)
    reply = Reply()
    ask(replicas, reply, 900)
    assert reply.wait().end.reason == "cancelled"
    replicas.close()
