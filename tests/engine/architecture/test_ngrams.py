"""Hashes of n-grams: in pieces as at once, and where texts begin."""

from __future__ import annotations

from gguf_serve.engine.architecture.ngrams import NGrams

NGRAMS = NGrams((1, 30, 500), (0, 100, 200, 300), (97, 89, 83, 79), per_gram=2, eos=9)


def expected_row(tokens: list[int]) -> list[int]:
    """The hashes of the last of these tokens; the others are its two predecessors."""
    two, three = tokens[2] ^ tokens[1] * 30, tokens[2] ^ tokens[1] * 30 ^ tokens[0] * 500
    return [two % 97, 100 + two % 89, 200 + three % 83, 300 + three % 79]


def test_hashes() -> None:
    tokens = [5, 1000, 77, 31]
    rows = NGRAMS.rows(tokens, 0, 4).tolist()
    windows = [[9, 9, 5], [9, 5, 1000], [5, 1000, 77], [1000, 77, 31]]
    assert rows == [expected_row(window) for window in windows]
    for start in range(4):
        for count in range(1, 5 - start):
            assert NGRAMS.rows(tokens, start, count).tolist() == rows[start : start + count]


def test_an_end_of_text_hides_what_is_before_it() -> None:
    """It does not hide anything from itself."""
    rows = NGRAMS.rows([5, 6, 9, 7, 8], 0, 5).tolist()
    assert rows[2] == expected_row([5, 6, 9])
    assert rows[3] == expected_row([9, 9, 7])
    assert rows[4] == expected_row([9, 7, 8])


def test_products_do_not_overflow() -> None:
    large = NGrams((1, 2**62, 3), (0, 0, 0, 0), (97,) * 4, 2, 9)
    assert large.rows([8, 8], 1, 1)[0, 0] == (8 ^ (8 * 2**62 % 2**64)) % 97


def test_places_of_images_are_like_ends_of_text() -> None:
    image = -(2**62)
    assert NGRAMS.rows([5, image, image - 1, 7, 8], 0, 5).tolist() == (
        NGRAMS.rows([5, 9, 9, 7, 8], 0, 5).tolist()
    )
