"""Pages in the host's memory: what a folder would do, without files."""

from __future__ import annotations

import random

from gguf_serve.engine.disk_cache.host_pages import HostPages
from gguf_serve.engine.disk_cache.names import PageName, beginning, chain, root_of
from gguf_serve.engine.disk_cache.page_file import Kind

ROOT = root_of({"model": "abc"})
SIZE = 100


def names(ids: list[int]) -> list[PageName]:
    """Of pages of four tokens."""
    return list(chain(ROOT, beginning(ROOT), ids, 4))


def data(name: PageName) -> bytes:
    return name.key * 3 + bytes(4)


def put(pages: HostPages, used: list[PageName]) -> list[bool]:
    stamps = zip(used, pages.stamps(len(used)), strict=True)
    return [
        pages.touch(name, Kind.KV, stamp)
        or pages.write(name, Kind.KV, memoryview(data(name)), stamp)
        for name, stamp in stamps
    ]


def there(pages: HostPages, wanted: list[PageName]) -> list[bool]:
    return [pages.read(name, Kind.KV, SIZE) == data(name) for name in wanted]


def test_what_was_written_is_read() -> None:
    pages, found = HostPages(10 * SIZE), names(list(range(12)))
    assert put(pages, found) == there(pages, found) == [True] * 3
    assert (pages.n_bytes, pages.n_files) == (3 * SIZE, 3)
    assert not pages.has(found[0], Kind.STATE)
    assert pages.read(found[0], Kind.KV, SIZE + 1) is None
    pages.remove(found[2], Kind.KV)
    assert there(pages, found) == [True, True, False]
    assert pages.n_bytes == 2 * SIZE


def test_it_keeps_a_copy() -> None:
    pages, (name,) = HostPages(SIZE), names([1, 2, 3, 4])
    own = bytearray(data(name))
    assert pages.write(name, Kind.KV, memoryview(own), pages.stamps(1)[0])
    own[:] = bytes(SIZE)
    assert there(pages, [name]) == [True]


def test_a_beginning_in_use_outlives_what_continues_it() -> None:
    """Ten times the limit in random chats after one system prompt."""
    pages, generator, system = HostPages(20 * SIZE), random.Random(1), list(range(12))
    for _ in range(50):
        put(pages, names([*system, *(generator.randrange(1 << 20) for _ in range(16))]))
        assert pages.n_bytes == pages.n_files * SIZE <= pages.limit
    assert there(pages, names(system)) == [True] * 3
    assert pages.n_written > 10 * 20


def test_a_chain_longer_than_the_limit_keeps_its_beginning() -> None:
    pages, found = HostPages(5 * SIZE), names(list(range(32)))
    assert put(pages, found) == there(pages, found) == [True] * 5 + [False] * 3


def test_the_end_of_what_was_used_longest_ago_goes_first() -> None:
    pages = HostPages(10 * SIZE)
    first, second = (names([seed, *range(15)]) for seed in (1, 2))
    for used in (first, second, first, names([3, *range(11)])):
        put(pages, used)
    assert there(pages, first) == [True] * 4
    assert there(pages, second) == [True, True, False, False]
