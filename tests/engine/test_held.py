"""What is kept, and counted, by bytes."""

from gguf_serve.engine.held import Budget, ByteCache


class Thing:
    """Something that can be referred to weakly."""


def test_the_longest_unused_value_goes_first():
    cache = ByteCache[str, int](10)
    for name in "abc":
        cache.put(name, ord(name), 3)
    assert cache.get("a") == ord("a")
    cache.put("d", ord("d"), 3)
    assert cache.get("b") is None
    assert [cache.get(name) for name in "acd"] == [ord(name) for name in "acd"]


def test_what_is_larger_than_the_cache_is_not_kept():
    cache = ByteCache[str, int](10)
    cache.put("a", 1, 11)
    assert len(cache) == 0
    cache.put("a", 1, 4)
    cache.put("a", 2, 9)
    assert cache.get("a") == 2


def test_bytes_count_while_anybody_has_the_object():
    budget = Budget(10)
    first, second = Thing(), Thing()
    assert budget.claim(first, 6, lambda: False)
    assert not budget.claim(second, 6, lambda: False)
    assert budget.n_bytes == 6
    del first
    assert budget.n_bytes == 0
    assert budget.claim(second, 6, lambda: False)


def test_room_is_made_as_long_as_there_is_something_to_give_up():
    budget = Budget(10)
    kept = [Thing(), Thing()]
    for thing in kept:
        budget.claim(thing, 5, lambda: False)
    del thing
    new = Thing()
    assert budget.claim(new, 10, lambda: bool(kept) and kept.pop() is not None)
    assert kept == []
