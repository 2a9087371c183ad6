"""The page cache, with the KV of a row simulated as a digest of all tokens up to it."""

from __future__ import annotations

import random
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_serve.engine.scheduling.page_cache import PageCache, PageCopy, PagedTokens

SIZE = 4


def digests(tokens, salt=None):
    """What the KV of each token depends on: it and everything before it."""
    state, out = hash((salt or 0,)), []
    for token in tokens:
        state = hash((state, token))
        out.append(state)
    return out


class Pages:
    """The device's side: pages of rows, written by sequences and by copies."""

    def __init__(self, cache):
        self.cache = cache
        self.rows = [[None] * cache.page_size for _ in range(cache.n_pages)]

    def copy(self, copies):
        """All at once: every source is read before any target is written."""
        read = [(c, self.rows[c.source][: c.n_rows]) for c in copies]
        for c, rows in read:
            self.rows[c.target][: c.n_rows] = rows

    def write(self, seq, end):
        size = self.cache.page_size
        for i, digest in list(enumerate(digests(seq.tokens[:end], seq.salt)))[seq.n_computed :]:
            assert self.cache._refs[seq.table[i // size]] == 1, "a shared page is written"
            self.rows[seq.table[i // size]][i % size] = digest

    def read(self, seq):
        size = self.cache.page_size
        return [self.rows[seq.table[i // size]][i % size] for i in range(seq.n_computed)]

    def check(self, seqs):
        for seq in seqs:
            assert self.read(seq) == digests(seq.tokens, seq.salt)[: seq.n_computed]
        check_cache(self.cache, seqs)


def check_cache(cache, seqs):
    """Reference counts equal the owners; every page is held, cached or free, and only once."""
    owners = Counter(page for seq in seqs for page in seq.table)
    owners.update(cache._pinned)
    assert cache._refs == [owners[page] for page in range(cache.n_pages)]
    idle = [page for page in range(cache.n_pages) if not owners[page]]
    assert sorted([*cache._free, *cache._unreferenced]) == idle
    order = {page: i for i, page in enumerate(cache._unreferenced)}
    in_tree = [node for node in cache._nodes if node is not None]
    for root in cache._roots.values():
        check_children(root, order, in_tree)
    assert not in_tree, "a page's node is not in the tree"
    stats = cache.stats()
    assert stats.n_used + stats.n_cached + stats.n_free == cache.n_pages
    assert stats.n_used == len(owners)


def check_children(node, order, in_tree):
    texts = [child.tokens for child in node.children]
    assert texts == sorted(texts)
    for a, b in pairwise(texts):
        assert b[: len(a)] != a, "one page says all that another one says"
    for child in node.children:
        in_tree.remove(child)
        assert child.depth == node.depth + 1
        if node.page in order:
            assert order[child.page] < order[node.page], "a parent would go before its child"
        check_children(child, order, in_tree)


def run(cache, pages, tokens, *, salt=None, share=True):
    """A sequence that computes all its tokens and stays."""
    seq = PagedTokens(list(tokens), salt, share)
    copies = cache.acquire(seq)
    assert copies is not None
    pages.copy(copies)
    cache.unpin_sources()
    n_cached = seq.n_computed
    pages.write(seq, len(tokens))
    cache.commit(seq, len(tokens))
    return seq, n_cached, copies


@pytest.fixture
def cache():
    return PageCache(n_pages=16, page_size=SIZE)


@pytest.fixture
def pages(cache):
    return Pages(cache)


@pytest.mark.parametrize(("n_pages", "page_size"), [(0, 4), (4, 0), (4, 3), (4, -4)])
def test_impossible_sizes_are_refused(n_pages, page_size):
    with pytest.raises(ValueError, match=str(min(n_pages, page_size))):
        PageCache(n_pages, page_size)


def test_repeated_prompt_evaluates_its_last_token_only(cache, pages):
    prompt = list(range(2 * SIZE))
    first, n_cached, _ = run(cache, pages, prompt)
    assert n_cached == 0
    cache.release(first)
    second, n_cached, copies = run(cache, pages, prompt)
    assert n_cached == len(prompt) - 1
    assert [c.n_rows for c in copies] == [SIZE - 1]
    pages.check([second])


def test_running_sequence_shares_full_pages_and_its_tail(cache, pages):
    first, _, _ = run(cache, pages, range(SIZE + 2))
    second, n_cached, copies = run(cache, pages, [*range(SIZE + 2), 99])
    assert n_cached == SIZE + 2
    assert second.table[0] == first.table[0]
    assert copies == [PageCopy(first.table[1], second.table[1], 2)]
    pages.check([first, second])


def test_sharing_is_exact_to_the_token(cache, pages):
    first, _, _ = run(cache, pages, [1, 2, 3, 4, 5, 6, 7, 8])
    cache.release(first)
    for n in range(1, 8):
        prompt = [*range(1, n + 1), 50, 51]
        assert cache.match(prompt) == n
        seq, n_cached, _ = run(cache, pages, prompt)
        assert n_cached == n
        pages.check([seq])
        cache.release(seq)


def test_continued_tail_changes_hands_without_a_copy(cache, pages):
    """The next turn of a conversation continues the last page of the turn before."""
    first, _, _ = run(cache, pages, range(SIZE + 2))
    table = list(first.table)
    cache.release(first)
    second, n_cached, copies = run(cache, pages, range(SIZE + 3))
    assert (n_cached, copies, second.table) == (SIZE + 2, [], table)


def test_duplicate_pages_are_merged(cache, pages):
    """Two that computed the same at the same time keep one page of it."""
    first, second = PagedTokens([1, 2, 3, 4, 5]), PagedTokens([1, 2, 3, 4, 6])
    for seq in (first, second):
        assert cache.acquire(seq) == []
        pages.write(seq, 5)
    cache.commit(first, 5)
    cache.commit(second, 5)
    assert first.table[0] == second.table[0]
    assert first.table[1] != second.table[1]
    assert cache.stats().n_used == 3
    pages.check([first, second])


def test_least_recently_used_goes_first_and_leaves_before_parents():
    cache = PageCache(n_pages=6, page_size=SIZE)
    pages = Pages(cache)
    old, new = list(range(12)), list(range(100, 112))
    for prompt in (old, new, old):  # so `new` is the older one in the end
        seq, _, _ = run(cache, pages, prompt)
        cache.release(seq)
    seq, _, _ = run(cache, pages, range(200, 204))
    cache.release(seq)
    assert cache.match([*new, 0]) == 8
    assert cache.match([*old, 0]) == 12


def test_extend_fails_and_changes_nothing_when_the_pool_is_exhausted():
    cache = PageCache(n_pages=3, page_size=SIZE)
    pages = Pages(cache)
    first, _, _ = run(cache, pages, [1])
    second, _, _ = run(cache, pages, [2])
    assert not cache.extend(first, 3 * SIZE)
    assert len(first.table) == 1
    assert cache.extend(first, 2 * SIZE)
    assert cache.acquire(PagedTokens([3])) is None
    pages.check([first, second])


def test_acquire_leaves_the_spare_pages(cache):
    tokens = list(range(14 * SIZE))
    assert cache.acquire(PagedTokens(list(tokens)), spare=3) is None
    check_cache(cache, [])
    seq = PagedTokens(list(tokens))
    assert cache.acquire(seq, spare=2) == []
    check_cache(cache, [seq])


def test_source_and_copy_do_not_need_more_room_than_the_pool_has():
    cache = PageCache(n_pages=2, page_size=SIZE)
    pages = Pages(cache)
    first, _, _ = run(cache, pages, [1, 2, 3])
    cache.release(first)
    second, n_cached, _ = run(cache, pages, [1, 9, 9, 9, 9])
    assert n_cached == 0
    pages.check([second])


def test_source_of_a_copy_is_not_overwritten_in_the_same_plan():
    cache = PageCache(n_pages=3, page_size=SIZE)
    pages = Pages(cache)
    first, _, _ = run(cache, pages, [1, 2, 3])
    cache.release(first)
    second = PagedTokens([1, 2, 9])
    (copy,) = cache.acquire(second)
    assert cache.extend(second, 2 * SIZE)
    assert not cache.extend(second, 3 * SIZE)
    cache.unpin_sources()
    assert cache.extend(second, 3 * SIZE)
    assert copy.source in second.table


def test_pinned_source_is_not_handed_over(cache, pages):
    first, _, _ = run(cache, pages, [1, 2, 3])
    source = first.table[0]
    cache.release(first)
    second, third = PagedTokens([1, 2, 9]), PagedTokens([1, 2, 3, 9])
    copies = [*cache.acquire(second), *cache.acquire(third)]
    assert [(copy.source, copy.n_rows) for copy in copies] == [(source, 2), (source, 3)]
    pages.copy(copies)
    pages.check([second, third])


def test_pinned_source_outlives_the_owner_of_its_prefix(cache, pages):
    first, _, _ = run(cache, pages, range(SIZE + 3))
    cache.release(first)
    second = PagedTokens([*range(SIZE + 2), 99])
    assert cache.acquire(second)
    cache.release(second)
    cache.unpin_sources()
    check_cache(cache, [])
    assert cache.match(range(SIZE + 4)) == SIZE + 3


def test_salts_share_nothing_and_leave_nothing(cache, pages):
    first, _, _ = run(cache, pages, range(6), salt=1)
    second, n_cached, _ = run(cache, pages, range(6), salt=2)
    assert n_cached == 0
    cache.release(first)
    cache.release(second)
    assert cache.match(range(6), 1) == 5
    assert cache.match(range(6)) == 0
    cache.clear()
    assert not cache._roots


def test_unshared_sequence_gives_but_does_not_take(cache, pages):
    first, _, _ = run(cache, pages, range(6))
    second, n_cached, _ = run(cache, pages, range(7), share=False)
    assert n_cached == 0
    assert not set(first.table) & set(second.table)
    cache.release(first)
    cache.release(second)
    assert cache.match(range(8)) == 7
    pages.check([])


def test_clear_forgets_what_nobody_holds(cache, pages):
    first, _, _ = run(cache, pages, range(6))
    second, _, _ = run(cache, pages, range(50, 56))
    cache.release(second)
    cache.clear()
    assert (cache.stats().n_cached, cache.stats().n_used) == (0, 2)
    assert cache.match(range(50, 56)) == 0
    assert cache.match(range(6)) == 5
    pages.check([first])


def test_what_is_cut_is_found_no_more(cache, pages):
    """From its page on; who holds it keeps it, and leaves nothing of it behind."""
    tokens = list(range(3 * SIZE + 2))
    seq, _, _ = run(cache, pages, tokens)
    other, _, _ = run(cache, pages, [*tokens, 7, 8])
    cache.release(seq)
    cache.cut(tokens, None, SIZE + 1)
    pages.check([other])
    assert cache.match(tokens) == SIZE
    cache.release(other)
    pages.check([])
    assert cache.match(tokens) == SIZE
    again, n_cached, _ = run(cache, pages, tokens)
    assert n_cached == SIZE
    cache.release(again)
    assert cache.match([*tokens, 9]) == len(tokens)
    cache.cut(tokens, None, len(tokens) - 1)  # in the last page, which is not full
    assert cache.match([*tokens, 9]) == 3 * SIZE


def test_hits_are_counted(cache, pages):
    first, _, _ = run(cache, pages, range(6))
    run(cache, pages, range(6))
    run(cache, pages, range(6), share=False)
    assert (cache.stats().n_hit_tokens, cache.stats().n_prompt_tokens) == (5, 12)
    cache.release(first)
    cache.release(first)  # idempotent


def test_acquiring_twice_is_refused(cache, pages):
    seq, _, _ = run(cache, pages, range(6))
    with pytest.raises(ValueError, match="6 tokens with 2 pages"):
        cache.acquire(seq)


def longest_common(tokens, others):
    best = 0
    for other in others:
        n = 0
        while n < min(len(other), len(tokens) - 1) and other[n] == tokens[n]:
            n += 1
        best = max(best, n)
    return best


prompts = st.lists(st.lists(st.integers(0, 1), min_size=1, max_size=14), min_size=1, max_size=12)


@settings(deadline=None)
@given(prompts, st.integers(0, 2**40))
def test_longest_prefix_of_all_that_was_ever_computed(prompts, seed):
    """Without eviction, nothing computed is lost and the longest of it is found."""
    rng = random.Random(seed)
    cache = PageCache(n_pages=100, page_size=SIZE)
    pages = Pages(cache)
    running, known = [], []
    for prompt in prompts:
        expected = longest_common(prompt, known)
        assert cache.match(prompt) == expected
        seq, n_cached, _ = run(cache, pages, prompt)
        assert n_cached == expected
        known.append(prompt)
        running.append(seq)
        if rng.random() < 0.6:
            cache.release(running.pop(rng.randrange(len(running))))
        pages.check(running)


@settings(max_examples=300, deadline=None)
@given(st.integers(1, 12), st.integers(0, 2**40))
def test_any_order_of_operations_keeps_every_page_right(n_pages, seed):
    rng = random.Random(seed)
    cache = PageCache(n_pages, rng.choice([1, 2, 4]))
    pages = Pages(cache)
    seqs: list[PagedTokens] = []
    for _ in range(60):
        random_operation(cache, pages, seqs, rng)
        pages.check(seqs)


def random_operation(cache, pages, seqs: list[PagedTokens], rng: random.Random):
    seq = rng.choice(seqs) if seqs else None
    action = rng.choice(["acquire", "acquire", "write", "write", "grow", "release", "clear", "cut"])
    if action == "acquire":
        copies = []
        for _ in range(rng.randint(1, 3)):  # several in one plan
            tokens = [rng.randint(0, 1) for _ in range(rng.randint(1, 10))]
            new = PagedTokens(tokens, rng.choice([None, None, 1]), rng.random() < 0.8)
            got = cache.acquire(new)
            if got is not None:
                assert new.n_computed < len(tokens)
                copies.extend(got)
                seqs.append(new)
        pages.copy(copies)
        cache.unpin_sources()
    elif action == "write" and seq is not None:
        end = rng.randint(seq.n_computed, len(seq.tokens))
        pages.write(seq, end)
        cache.commit(seq, end)
    elif action == "grow" and seq is not None:
        if cache.extend(seq, len(seq.tokens) + 1):
            seq.tokens.append(rng.randint(0, 1))
    elif action == "release" and seq is not None:
        seqs.remove(seq)
        cache.release(seq)
    elif action == "cut" and seq is not None:
        cache.cut(seq.tokens, seq.salt, rng.randrange(len(seq.tokens)))
    elif action == "clear":
        cache.clear()


def test_pages_that_come_from_elsewhere_are_found_like_others():
    cache = PageCache(8, SIZE)
    pages = Pages(cache)
    tokens = list(range(14))
    assert cache.insert(tokens, None, 1) == (0, [])  # nothing may be missing before them
    n_there, new = cache.insert(tokens[:8], None, 0)
    assert (n_there, len(new)) == (0, 2)
    for i, page in enumerate(new):
        pages.rows[page] = digests(tokens)[i * SIZE : (i + 1) * SIZE]
    assert cache.insert(tokens[:8], None, 1) == (2, [])
    (page,) = cache.insert(tokens, None, 2)[1]  # two tokens are no full page
    pages.rows[page] = digests(tokens)[8:12]
    assert cache.stats().n_hit_tokens == 0
    seq = PagedTokens(tokens)
    assert cache.acquire(seq) == []
    assert seq.n_computed == 12
    pages.check([seq])


def test_pages_that_come_from_elsewhere_leave_room():
    cache = PageCache(4, SIZE)
    seq = PagedTokens(list(range(100, 106)))
    cache.acquire(seq)
    assert cache.insert(range(12), None, 0, spare=2) == (0, [])
    n_there, new = cache.insert(range(12), None, 0, spare=1)
    assert (n_there, len(new)) == (0, 1)
    assert cache.find_pages(range(12)) == (new, SIZE)
    check_cache(cache, [seq])


def test_a_page_that_is_being_filled_may_come_from_elsewhere_too():
    """Whoever computes it goes on with the one that was there first."""
    cache = PageCache(4, SIZE)
    seq = PagedTokens(list(range(6)))
    cache.acquire(seq)
    cache.commit(seq, 3)
    (page,) = cache.insert(range(4), None, 0)[1]
    assert page not in seq.table
    cache.commit(seq, 6)
    assert seq.table[0] == page
    check_cache(cache, [seq])
