"""Special tokens in a text: precedence, visibility and white space around them."""

from __future__ import annotations

import pytest

from gguf_serve.engine.text.partition import SpecialTokens
from gguf_serve.engine.text.vocab import Attribute, Vocab


def special_tokens(*tokens: tuple[str, Attribute]) -> SpecialTokens:
    texts = [text for text, _ in tokens]
    return SpecialTokens(
        Vocab(
            model="gpt2",
            tokens=texts,
            ids={text: i for i, text in enumerate(texts)},
            scores=[],
            attributes=bytearray(int(attribute) for _, attribute in tokens),
            roles={},
        )
    )


CONTROL, USER_DEFINED, NORMAL = Attribute.CONTROL, Attribute.USER_DEFINED, Attribute.NORMAL


def test_text_without_special_tokens_is_one_piece() -> None:
    tokens = special_tokens(("<s>", CONTROL), ("plain", NORMAL))
    assert tokens.split("plain <s", parse_special=True) == ["plain <s"]
    assert tokens.split("", parse_special=True) == []


def test_a_longer_token_wins_even_if_it_begins_later() -> None:
    tokens = special_tokens(("<a", CONTROL), ("a<long>", CONTROL))
    assert tokens.split("<a<long>x", parse_special=True) == ["<", 1, "x"]


def test_length_counts_in_bytes() -> None:
    tokens = special_tokens(("abc", CONTROL), ("cé€", CONTROL))  # 3 and 6 bytes
    assert tokens.split("abcé€", parse_special=True) == ["ab", 1]


def test_runs_are_cut_from_the_left_by_the_longest() -> None:
    tokens = special_tokens(("  ", USER_DEFINED), ("   ", USER_DEFINED))
    assert tokens.split("a        b", parse_special=False) == ["a", 1, 1, 0, "b"]


def test_every_occurrence_is_found() -> None:
    tokens = special_tokens(("<x>", CONTROL), ("<y>", CONTROL), ("<yy>", CONTROL))
    got = tokens.split("<x>a<yy><y><x>b<y>", parse_special=True)
    assert got == [0, "a", 2, 1, 0, "b", 1]


@pytest.mark.parametrize(
    ("attribute", "expected"),
    [
        (CONTROL, ["a \n", 0, " \n\u00a0b"]),
        (CONTROL | Attribute.LSTRIP, ["a", 0, " \n\u00a0b"]),
        (CONTROL | Attribute.RSTRIP, ["a \n", 0, "\u00a0b"]),  # only ASCII white space
    ],
)
def test_white_space_around_a_token(attribute: Attribute, expected: list[str | int]) -> None:
    assert special_tokens(("<s>", attribute)).split("a \n<s> \n\u00a0b", True) == expected


def test_nothing_is_left_of_white_space_alone() -> None:
    both = CONTROL | Attribute.LSTRIP | Attribute.RSTRIP
    assert special_tokens(("<s>", both)).split(" <s> <s>  ", True) == [0, 0]


def test_only_user_defined_tokens_without_parsing() -> None:
    tokens = special_tokens(("<c>", CONTROL), ("<u>", USER_DEFINED), ("<?>", Attribute.UNKNOWN))
    assert tokens.split("<c><u><?>", parse_special=False) == ["<c>", 1, "<?>"]
    assert tokens.split("<c><u><?>", parse_special=True) == [0, 1, 2]
