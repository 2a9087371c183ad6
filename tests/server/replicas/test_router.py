"""Conversations stay where their pages are, and load is spread otherwise."""

from __future__ import annotations

from gguf_serve.engine.request import Request
from gguf_serve.server.replicas.router import Place, Router


def places(*n_requests: int, n_pages: int = 100) -> list[Place]:
    return [Place(f"{i}", 4, 32, n_pages, n) for i, n in enumerate(n_requests)]


def prompt(seed: int, n: int) -> Request:
    return Request(tuple(range(1000 * seed, 1000 * seed + n)))


def test_a_prefix_brings_a_request_to_where_it_is() -> None:
    router, there = Router(), places(0, 0)
    router.note(there[1], prompt(1, 200), range(50), "")
    longer = Request((*prompt(1, 200).prompt, *range(50), 7, 7, 7))
    route = router.choose(there, longer)
    assert (route.id, route.reason, route.n_shared) == ("1", "prefix", 224)
    other = Request(longer.prompt, cache_salt="another's")
    assert router.choose(there, other).reason == "load"
    router.forget("1")
    assert router.choose(there, longer).n_shared == 0


def test_a_busy_engine_is_left_for_an_idle_one_if_little_is_shared() -> None:
    router = Router()
    router.note(places(0, 0)[1], prompt(1, 96), (), "")
    assert router.choose(places(0, 1), prompt(1, 200)).id == "1"
    assert router.choose(places(0, 4), prompt(1, 200)).id == "0"
    router.note(places(0, 0)[1], prompt(2, 900), (), "")
    assert router.choose(places(0, 3), prompt(2, 900)).id == "1"
    assert router.choose(places(0, 0, 0), prompt(3, 10)).id == "0"
    assert router.choose(places(2, 1, 3), prompt(3, 10)).id == "1"


def test_a_session_comes_back_and_every_front_places_it_alike() -> None:
    router, there = Router(), places(0, 0, 0)
    first = {f"s{i}": router.choose(there, prompt(i, 5), f"s{i}").id for i in range(30)}
    assert set(first.values()) == {"0", "1", "2"}
    assert first == {s: Router().choose(there, prompt(1, 5), s).id for s in first}
    left = places(0, 0)
    for session, id in first.items():  # those of the others stay where they are
        if id != "2":
            assert router.choose(left, prompt(1, 5), session).id == id
    router.note(there[0], prompt(1, 5), (), "s1")
    assert router.choose(there, prompt(9, 5), "s1").id == "0"


def test_no_more_is_remembered_than_a_cache_holds() -> None:
    router, there = Router(), places(0, n_pages=4)
    router.note(there[0], prompt(1, 96), (), "")
    router.note(there[0], prompt(2, 96), (), "")
    assert router.choose(there, prompt(1, 96)).n_shared == 0
    assert router.choose(there, prompt(2, 96)).n_shared == 96
