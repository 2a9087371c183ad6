"""How far a draft model is in the pages that it shares with its target."""

from __future__ import annotations

from gguf_serve.engine.scheduling.page_cache import PageCache, PagedTokens
from gguf_serve.engine.speculation.models.coverage import Coverage


def computed(cache: PageCache, tokens: list[int]) -> PagedTokens:
    seq = PagedTokens(tokens)
    assert cache.acquire(seq) is not None
    cache.commit(seq, len(tokens))
    return seq


def test_what_is_covered_goes_with_pages_that_are_found_again() -> None:
    cache = PageCache(8, 4)
    coverage = Coverage(cache)
    first = computed(cache, list(range(10)))
    assert coverage.n_covered(first) == 0
    coverage.mark(first, 0, 6)
    coverage.mark(first, 6, 9)
    assert coverage.n_covered(first) == 9
    cache.release(first)
    again = PagedTokens([*range(10), 50, 51])
    assert cache.acquire(again) == []
    assert coverage.n_covered(again) == 9
    cache.release(again)


def test_a_copied_page_is_covered_as_far_as_it_is_copied() -> None:
    cache = PageCache(8, 4)
    coverage = Coverage(cache)
    first = computed(cache, list(range(8)))
    coverage.mark(first, 0, 8)
    other = PagedTokens([0, 1, 2, 3, 4, 5, 60, 61])
    copies = cache.acquire(other)
    assert copies is not None
    (copy,) = copies
    assert coverage.n_covered(other) == 4
    coverage.copy(copy)
    assert coverage.n_covered(other) == 6


def test_a_page_with_new_content_is_not_covered() -> None:
    cache = PageCache(2, 4)
    coverage = Coverage(cache)
    first = computed(cache, list(range(8)))
    coverage.mark(first, 0, 8)
    stamp = coverage.stamp(first, 4, 6)
    cache.release(first)
    other = computed(cache, list(range(20, 28)))
    assert set(other.table) == {0, 1}
    assert coverage.n_covered(other) == 0
    assert coverage.stamp(other, 4, 6) != stamp
