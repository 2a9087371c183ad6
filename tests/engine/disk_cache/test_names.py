"""Names of pages: equal where all that decides their bytes is, and else different."""

from __future__ import annotations

import pytest

from gguf_serve.engine.disk_cache.names import PageName, beginning, chain, root_of

MADE_WITH = {"model": "abc", "cache types": ["f16", "f16"], "RoPE options": {"base": 0.0}}
ROOT = root_of(MADE_WITH)
IDS = list(range(10))


def names(ids: list[int], begin: bytes = b"") -> list[PageName]:
    return list(chain(ROOT, begin or beginning(ROOT), ids, 4))


def test_a_chain_names_full_pages_only() -> None:
    assert [name.ids for name in names(IDS)] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    assert names(IDS[:3]) == []
    assert len(names(IDS[:4])) == 1


def test_each_page_hashes_the_name_before_it() -> None:
    first, second = names(IDS)
    assert (first.parent, second.parent) == (beginning(ROOT), first.key)
    assert names(IDS) == names([*IDS[:8], 77])
    other = names([9, *IDS[1:]])
    assert other[1].ids == second.ids
    assert other[1].key != second.key


def test_the_content_of_an_image_counts_from_its_page_on() -> None:
    """Beside its places' ids, which have 62 bits of it."""
    plain = names(IDS)
    one, other = (list(chain(ROOT, beginning(ROOT), IDS, 4, [(5, bytes([n]))])) for n in (1, 2))
    assert plain[0] == one[0] == other[0]
    assert len({found[1].key for found in (plain, one, other)}) == 3


@pytest.mark.parametrize(
    "change",
    [{"model": "xyz"}, {"cache types": ["f16", "q8_0"]}, {"RoPE options": {"base": 5e5}}, {"a": 1}],
)
def test_a_root_is_of_all_that_decides_the_bytes(change: dict) -> None:
    assert root_of(MADE_WITH | change) != ROOT
    assert root_of(dict(reversed(MADE_WITH.items()))) == ROOT


def test_chains_begin_apart_by_adapters_and_salt() -> None:
    begun = [
        beginning(ROOT),
        beginning(ROOT, [("lora", 1.0)]),
        beginning(ROOT, [("lora", 0.5)]),
        beginning(ROOT, [("other", 1.0)]),
        beginning(ROOT, [("lora", 1.0)], [7]),
        beginning(ROOT, salt="a"),
        beginning(ROOT, salt="b"),
        beginning(root_of({}), salt="a"),
    ]
    assert len(set(begun)) == len(begun)
    assert len({names(IDS, begin)[0].key for begin in begun}) == len(begun)


def test_an_adapter_without_scale_does_not_count() -> None:
    assert beginning(ROOT, [("lora", 0.0)]) == beginning(ROOT)
