"""Which tokens hold or begin a sequence breaker."""

from __future__ import annotations

import time

from hypothesis import given
from hypothesis import strategies as st

from gguf_serve.engine.sampling.dry_breakers import breaker_heads


def test_breaker_heads() -> None:
    vocabulary = [b"a", b"xEN", b"D", b"END", b"sEND.", b"E", b"N", b"\n", b"\xe2\x80"]
    ids = {"ND": [6, 2], "D": [2]}
    heads = breaker_heads(
        ("END", "\n", "", "…"), len(vocabulary), lambda text: ids[text], vocabulary.__getitem__
    )
    assert heads == {
        1: frozenset({(2,)}),
        3: frozenset({()}),
        4: frozenset({()}),
        5: frozenset({(6, 2)}),
        7: frozenset({()}),
    }


BYTES = st.text("abé…", min_size=1, max_size=4).map(str.encode)


@given(breaker=st.text("abé…", max_size=5), vocabulary=st.lists(BYTES | st.just(b""), max_size=20))
def test_every_token_is_found(breaker: str, vocabulary: list[bytes]) -> None:
    expected: dict[int, set[tuple[int, ...]]] = {}
    for token, piece in enumerate(vocabulary):
        if breaker and breaker.encode() in piece:
            expected[token] = {()}
            continue
        for n in range(1, len(breaker)):
            if piece.endswith(breaker[:n].encode()):
                expected.setdefault(token, set()).add(tuple(map(ord, breaker[n:])))
    found = breaker_heads(
        (breaker,), len(vocabulary), lambda text: list(map(ord, text)), vocabulary.__getitem__
    )
    assert found == expected


def test_many_long_breakers_are_found_quickly() -> None:
    """The request waits for it; by tokens one after another this took half a minute."""
    vocabulary = [f"{i * 2654435761 % 2**32:x}".encode() for i in range(100_000)]
    breakers = tuple(chr(97 + i % 6) * 20 + str(i) for i in range(64))
    begin = time.process_time()
    breaker_heads(breakers, len(vocabulary), lambda text: [0], vocabulary.__getitem__)
    assert time.process_time() - begin < 5
