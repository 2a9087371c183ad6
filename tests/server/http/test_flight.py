"""A request that goes on elsewhere, more than once."""

from __future__ import annotations

from gguf_serve.engine.request import (
    Delta,
    Event,
    Finished,
    Mark,
    Request,
    Resume,
    Sound,
    Speaking,
    Started,
    Timings,
)
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


def test_a_sound_begins_anew_and_nothing_of_it_is_heard_twice() -> None:
    heard: list[Event] = []
    request = Request((1,), wants=Speaking(1))
    flight = Flight(request, heard.append, can_resume=False)
    flight.hear(Started(1, 0, 0))
    flight.hear(Sound(b"abcd"))
    flight.lose()
    assert flight.rest() == request
    for event in (Started(1, 1, 0), Sound(b"ab"), Sound(b"cdef"), Sound(b"gh")):
        flight.hear(event)
    flight.hear(Finished("eos", Timings(predicted_n=4)))
    sounds = [event.pcm for event in heard if isinstance(event, Sound)]
    assert sounds == [b"abcd", b"", b"ef", b"gh"]
    assert isinstance(heard[-1], Finished)
    assert heard[-1].timings.predicted_n == 4
