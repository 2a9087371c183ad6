"""Incremental decoding: what is cut by tokens comes out whole."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from gguf_serve.engine.text.detokenizer import TextDecoder


def decoded(pieces: list[bytes]) -> list[str]:
    decoder = TextDecoder(pieces.__getitem__)
    return [*(decoder.push(i) for i in range(len(pieces))), decoder.flush()]


def test_a_character_comes_with_its_last_byte() -> None:
    assert decoded([b"a\xf0", b"\x9f", b"\x98", b"\x80b"]) == ["a", "", "", "\U0001f600b", ""]


def test_a_character_that_never_ends_is_replaced_at_the_end() -> None:
    assert decoded([b"a\xe2\x82"]) == ["a", "\ufffd"]


def test_bytes_are_replaced_once_they_are_surely_invalid() -> None:
    assert decoded([b"\x80"]) == ["\ufffd", ""]
    assert decoded([b"\xe2\x82", b"A"]) == ["", "\ufffdA", ""]
    # F5 begins no character; E0 must not be followed by 80.
    assert decoded([b"\xf5"]) == ["\ufffd", ""]
    assert decoded([b"\xe0", b"\x80"]) == ["", "\ufffd\ufffd", ""]


def test_empty_pieces_do_not_disturb_a_cut_character() -> None:
    assert decoded([b"\xc3", b"", b"\xa9"]) == ["", "", "é", ""]


@given(st.text(), st.lists(st.integers(1, 5)))
def test_any_cut_gives_the_text_and_no_replacement(text: str, cuts: list[int]) -> None:
    rest, pieces = text.encode(), []
    for size in cuts:
        pieces.append(rest[:size])
        rest = rest[size:]
    parts = decoded([*pieces, rest])
    assert "".join(parts) == text
    assert parts[-1] == ""


@given(st.lists(st.binary(max_size=4)))
def test_any_bytes_come_out_as_decoding_at_once_would_give_them(pieces: list[bytes]) -> None:
    assert "".join(decoded(pieces)) == b"".join(pieces).decode(errors="replace")
