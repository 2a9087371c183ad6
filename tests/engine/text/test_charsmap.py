"""Normalization rules: reading the trie, and applying the longest rule."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest.mock import patch

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import gguf_serve.engine.text.charsmap
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.text.charsmap import CharsMap, normalizer


@pytest.fixture(scope="module")
def charsmap(shared: Path) -> CharsMap:
    with open_gguf(shared / "vocabs" / "ggml-vocab-nomic-bert-moe.gguf") as file:
        return CharsMap(file.metadata["tokenizer.ggml.precompiled_charsmap"].tobytes())


@pytest.fixture(scope="module")
def normalize(charsmap: CharsMap) -> Callable[[str], str]:
    return whole(normalizer(charsmap, []))


def whole(parts: Callable[[str], Iterable[str]]) -> Callable[[str], str]:
    return lambda text: "".join(parts(text))


def double_array(rules: dict[bytes, int]) -> list[int]:
    """The trie of ``rules`` (key -> value), built by trying offsets until the children fit."""
    nodes = {0: 0}

    def place(at: int, prefix: bytes) -> None:
        keys = {key for key in rules if key.startswith(prefix)}
        labels = sorted({key[len(prefix)] for key in keys if key != prefix})
        leaf = prefix in keys
        wanted = [*labels, 0] if leaf else labels
        offset = next(o for o in range(1, 1 << 20) if not {at ^ o ^ c for c in wanted} & {*nodes})
        base = at ^ offset
        nodes[at] |= (offset << 10) | (0x100 if leaf else 0)
        if leaf:
            nodes[base] = (1 << 31) | rules[prefix]
        for label in labels:
            nodes[base ^ label] = label
        for label in labels:
            place(base ^ label, prefix + bytes([label]))

    place(0, b"")
    return [nodes.get(i, 0xFF) for i in range(max(nodes) + 256)]


def blob(rules: dict[str, str]) -> bytes:
    replacements, offsets = b"", {}
    for key, value in rules.items():
        offsets[key.encode()] = len(replacements)
        replacements += value.encode() + b"\0"
    nodes = double_array(offsets)
    return struct.pack(f"<I{len(nodes)}I", 4 * len(nodes), *nodes) + replacements


RULES = {"A": "a", "é": "e", "ab": "X", "abc": "YZ", "ﬁ": "fi", "\t": " ", "b\u0301": "B", "z": ""}


def by_definition(rules: dict[str, str], text: str) -> str:
    out, at = "", 0
    while at < len(text):
        for end in range(len(text), at, -1):
            if text[at:end] in rules:
                out, at = out + rules[text[at:end]], end
                break
        else:
            out, at = out + text[at], at + 1
    return out


def test_a_map_gives_its_rules() -> None:
    charsmap = CharsMap(blob(RULES))
    singles, seconds = charsmap.characters()
    assert {chr(key): value for key, value in singles.items()} == {
        key: value for key, value in RULES.items() if len(key) == 1
    }
    assert seconds == {"b", "\u0301"}
    assert charsmap.longest(b"abcd") == (3, "YZ")
    assert charsmap.longest(b"abd") == (2, "X")
    assert charsmap.longest("ﬁ".encode()) == (3, "fi")
    assert charsmap.longest(b"ba") is None


@given(st.text(alphabet="AabcézﬁB\t\u0301d"))
def test_the_longest_rule_applies_at_each_position(text: str) -> None:
    normalize = whole(normalizer(CharsMap(blob(RULES)), []))
    assert normalize(text) == by_definition(RULES, text)
    with patch.object(gguf_serve.engine.text.charsmap, "PART", 3):  # a long text is cut
        assert normalize(text) == by_definition(RULES, text)


def test_user_defined_tokens_are_left_alone() -> None:
    normalize = whole(normalizer(CharsMap(blob(RULES)), ["Abé"]))
    # As far as a text goes along with the token it is not touched, even if it turns away.
    assert normalize("Abé A éabc Abc") == "Abé A eYZ Abc"


def test_without_a_map_nothing_changes() -> None:
    assert whole(normalizer(None, []))("Ａé\t") == "Ａé\t"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ﬁ Ａ１\u00a0\u3000", "fi A1  "),
        ("e\u0301 e\u0301\u0301", "é é\u0301"),
        ("\u1100\u1161\u11a8", "각"),
        ("a\x01b\x7f", "ab"),
        ("½ ㈱", "1\u20442 (株)"),
    ],
)
def test_a_real_map(normalize: Callable[[str], str], text: str, expected: str) -> None:
    assert normalize(text) == expected


@settings(max_examples=200, deadline=None)
@given(text=st.text(alphabet="aeA e\u0301\u0300\u0323ﬁ½각\u1100\u1161\u11a8\u093cक\x01漢"))
def test_a_real_map_applies_the_longest_rule(
    charsmap: CharsMap, normalize: Callable[[str], str], text: str
) -> None:
    expected, rest = "", text.encode()
    while rest:
        length, part = charsmap.longest(rest) or (len(rest.decode()[0].encode()), rest.decode()[0])
        expected, rest = expected + part, rest[length:]
    assert normalize(text) == expected


@pytest.mark.parametrize(
    "broken",
    [b"", b"\x04\0\0\0", b"\xff\xff\xff\xff" + bytes(64), b"\x06\0\0\0" + bytes(64)],
)
def test_a_malformed_map_is_refused(broken: bytes) -> None:
    with pytest.raises(ModelError, match="precompiled_charsmap"):
        CharsMap(broken)


def test_a_rule_without_replacement_is_refused() -> None:
    cut = blob({"a": "bcd"})[:-2]  # without the end of the only replacement
    with pytest.raises(ModelError, match="no replacement"):
        CharsMap(cut).characters()


@settings(max_examples=300)
@given(st.binary(min_size=4, max_size=400), st.binary(max_size=40))
def test_any_bytes_are_read_or_refused(nodes: bytes, replacements: bytes) -> None:
    nodes = nodes[: len(nodes) // 4 * 4]
    try:
        charsmap = CharsMap(struct.pack("<I", len(nodes)) + nodes + replacements)
        whole(normalizer(charsmap, ["<x>"]))("any text")
    except ModelError:
        return
    assert isinstance(charsmap.characters()[0], dict)
