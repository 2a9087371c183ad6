"""A request that goes on elsewhere, more than once."""

from __future__ import annotations

from gguf_serve.engine.request import Delta, Event, Mark, Request, Resume, Started
from gguf_serve.server.http.flight import Flight


def test_what_was_had_before_it_came_is_gone_on_from_too() -> None:
    heard: list[Event] = []
    before = Resume((7, 8), 2, Mark(n_draws=2))
    flight = Flight(Request((1,), resume=before), heard.append, can_resume=True)
    assert flight.rest().resume == before
    flight.hear(Started(1, 0, 0))
    flight.hear(Delta("c", (9,), mark=Mark(n_draws=3)))
    flight.lose()
    assert flight.rest().resume == Resume((7, 8, 9), 3, Mark(n_draws=3))
    flight.hear(Started(1, 1, 0))
    assert heard == [Started(1, 0, 0), Delta("c", (9,), mark=Mark(n_draws=3))]
