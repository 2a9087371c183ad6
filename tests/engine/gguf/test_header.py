from __future__ import annotations

import random
import struct
import time
import tracemalloc
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.gguf.header import MAX_ARRAYS, MAX_HEADER_BYTES, MAX_KEYS, MAX_TENSORS

U8, U16, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 2, 4, 6, 7, 8, 9, 10
TYPE_F32, TYPE_Q8_0 = 0, 8


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return u64(len(raw)) + raw


def entry(key: str | bytes, kind: int, value: bytes) -> bytes:
    return text(key) + u32(kind) + value


def array(kind: int, count: int, values: bytes = b"") -> bytes:
    return u32(kind) + u64(count) + values


def tensor(name: str | bytes, shape: Sequence[int], kind: int = TYPE_F32, offset: int = 0) -> bytes:
    return text(name) + u32(len(shape)) + b"".join(map(u64, shape)) + u32(kind) + u64(offset)


ARCHITECTURE = entry("general.architecture", STRING, text("llama"))


def header(n_tensors: int, n_keys: int, version: int = 3) -> bytes:
    return b"GGUF" + u32(version) + u64(n_tensors) + u64(n_keys)


def packed(
    *entries: bytes, tensors: Sequence[bytes] = (), data: bytes = b"", version: int = 3,
    alignment: int = 32,
) -> bytes:  # fmt: skip
    """A file with ``general.architecture`` and these keys, tensors and tensor data."""
    keys = [ARCHITECTURE, *entries]
    raw = b"".join([header(len(tensors), len(keys), version), *keys, *tensors])
    return raw + bytes(-len(raw) % alignment) + data


SMALL = packed(
    entry("llama.block_count", U32, u32(2)),
    entry("a.flag", BOOL, b"\x01"),
    entry("a.words", ARRAY, array(STRING, 3, text("a") + text("") + text("日本"))),
    entry("a.scores", ARRAY, array(F32, 2, struct.pack("<2f", 0.5, -1.0))),
    entry("a.nested", ARRAY, array(ARRAY, 2, array(U8, 2, b"\x01\x02") + array(STRING, 0))),
    entry("general.alignment", U32, u32(32)),
    tensors=[tensor("one", [4, 2]), tensor("two.weight", [32, 1, 2], TYPE_Q8_0, 32)],
    data=bytes(range(32)) + bytes(range(100, 168)),
)


@pytest.fixture(scope="module")
def scratch(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("gguf") / "model.gguf"


@pytest.mark.parametrize("version", [2, 3])
def test_a_small_file(scratch, version):
    scratch.write_bytes(SMALL[:4] + u32(version) + SMALL[8:])
    with open_gguf(scratch) as gguf:
        assert gguf.version == version
        assert gguf.architecture == "llama"
        assert gguf.metadata["llama.block_count"] == 2
        assert gguf.metadata["a.flag"] is True
        assert gguf.metadata["a.words"] == ["a", "", "日本"]
        assert gguf.metadata["a.scores"].tolist() == [0.5, -1.0]
        numbers, strings = gguf.metadata["a.nested"]
        assert (numbers.tolist(), strings) == ([1, 2], [])
        one, two = gguf.tensors.values()
        assert (one.name, one.shape, one.type.name, one.n_bytes) == ("one", (4, 2), "F32", 32)
        assert (two.shape, two.type.name, two.n_bytes) == ((32, 1, 2), "Q8_0", 68)
        assert gguf.data("one").tolist() == list(range(32))
        assert gguf.data("two.weight").tolist() == list(range(100, 168))


def test_another_alignment(scratch):
    scratch.write_bytes(
        packed(
            entry("general.alignment", U32, u32(4096)),
            tensors=[tensor("a", [1]), tensor("b", [2], offset=4096)],
            data=b"1234" + bytes(4092) + b"abcdefgh",
            alignment=4096,
        )
    )
    with open_gguf(scratch) as gguf:
        assert gguf.data("a").tobytes() == b"1234"
        assert gguf.data("b").tobytes() == b"abcdefgh"


def test_a_file_without_tensors_may_end_without_padding(scratch):
    scratch.write_bytes(header(0, 1) + ARCHITECTURE)
    with open_gguf(scratch) as gguf:
        assert (gguf.tensors, gguf.n_bytes) == ({}, 0)


def test_an_empty_array_at_the_end_of_the_file(scratch):
    scratch.write_bytes(header(0, 2) + ARCHITECTURE + entry("a.b", ARRAY, array(F32, 0)))
    with open_gguf(scratch) as gguf:
        assert gguf.metadata["a.b"].shape == (0,)
        assert gguf.metadata["a.b"].dtype == np.float32


def nested(depth: int) -> bytes:
    return array(U8, 0) if depth == 0 else array(ARRAY, 1, nested(depth - 1))


def one_tensor(*args, data: bytes = bytes(64), entries: Sequence[bytes] = ()) -> bytes:
    return packed(*entries, tensors=[tensor(*args)], data=data)


MALFORMED = {
    "short magic": (b"GG", "magic number needs 4 bytes"),
    "bad magic": (b"GGML" + SMALL[4:], "not a GGUF file: it begins with b'GGML'"),
    "no version": (b"GGUF\x03\0", "the version needs 4 bytes"),
    "version 0": (header(0, 0, 0), "unknown GGUF version 0"),
    "version 1": (header(0, 0, 1), "version 1 is not supported"),
    "version 4": (header(0, 0, 4), "unknown GGUF version 4"),
    "big-endian": (b"GGUF\0\0\0\x03" + bytes(16), "big-endian"),
    "no counts": (b"GGUF" + u32(3) + bytes(4), "number of tensors needs 8 bytes"),
    "absurd keys": (header(0, 2**63) + bytes(64), f"number of keys for 88 bytes: {2**63}"),
    "absurd tensors": (header(2**64 - 1, 0) + bytes(64), f"number of tensors .*: {2**64 - 1}"),
    "long key": (
        header(0, 1) + u64(2**40) + bytes(99),
        f"the name of key 0 needs {2**40} bytes at offset 32, the file has 131",
    ),
    "key not UTF-8": (packed(entry(b"a\xff", U8, b"\0")), r"name of key 1 is not UTF-8: b'a\\xff'"),
    "key twice": (packed(entry("a.b", U8, b"\0"), entry("a.b", U8, b"\0")), "'a.b' .* twice"),
    "unknown type": (packed(entry("a.b", 13, u64(0))), "key 'a.b' has the unknown value type 13"),
    "unknown element type": (
        packed(entry("a.b", ARRAY, array(99, 1, u64(0)))),
        "key 'a.b' is an array of the unknown value type 99",
    ),
    "long string": (packed(entry("a.b", STRING, u64(10**6))), "'a.b' needs 1000000 bytes"),
    "string not UTF-8": (packed(entry("a.b", STRING, text(b"ab\xc3"))), "'a.b' .*UTF-8.* byte 2"),
    "long array": (packed(entry("a.b", ARRAY, array(U64, 2**61))), f"'a.b' needs {2**64} bytes"),
    "long string array": (
        packed(entry("a.b", ARRAY, array(STRING, 2**60, bytes(80)))),
        f"'a.b' has {2**60} elements, more than fit",
    ),
    "long nested array": (
        packed(entry("a.b", ARRAY, array(ARRAY, 2**60, array(U8, 0)))),
        f"'a.b' has {2**60} elements, more than fit",
    ),
    "long string in array": (
        packed(entry("a.b", ARRAY, array(STRING, 2, text("x") + u64(2**64 - 1) + bytes(9)))),
        rf"'a.b'\[1\] needs {2**64 - 1} bytes",
    ),
    "array of strings cut": (
        header(0, 2)
        + ARCHITECTURE
        + entry("a.b", ARRAY, array(STRING, 2, text("12345678") + b"1")),
        r"length of 'a.b'\[1\] needs 8 bytes",
    ),
    "string in array not UTF-8": (
        packed(entry("a.b", ARRAY, array(STRING, 2, text("x") + text(b"\x80")))),
        r"'a.b'\[1\] is not UTF-8",
    ),
    "deep array": (packed(entry("a.b", ARRAY, nested(5))), "'a.b' .* nested more than 4 deep"),
    "many arrays": (
        packed(entry("a.b", ARRAY, array(ARRAY, MAX_ARRAYS, array(U8, 0) * MAX_ARRAYS))),
        f"'a.b' is beyond the {MAX_ARRAYS} arrays",
    ),
    "no dimensions": (one_tensor("w", []), "tensor 'w' has 0 dimensions, not 1 to 4"),
    "five dimensions": (one_tensor("w", [1] * 5), "tensor 'w' has 5 dimensions"),
    "absurd dimensions": (
        packed(tensors=[text("w") + u32(2**32 - 1)], data=bytes(64)),
        f"tensor 'w' has {2**32 - 1} dimensions",
    ),
    "zero dimension": (one_tensor("w", [4, 0]), r"tensor 'w' .* impossible shape \(4, 0\)"),
    "product overflows": (one_tensor("w", [2**32, 2**32]), "tensor 'w' .* impossible shape"),
    "dimension overflows": (one_tensor("w", [2**64 - 1]), "tensor 'w' .* impossible shape"),
    "unknown tensor type": (one_tensor("w", [4], 4), "tensor 'w' is of the unknown type 4"),
    "part of a block": (
        one_tensor("w", [33, 2], TYPE_Q8_0),
        r"tensor 'w' has rows of 33 elements, .* blocks of 32 \(Q8_0\)",
    ),
    "offset unaligned": (
        one_tensor("w", [4], TYPE_F32, 16),
        "tensor 'w' lies at offset 16, not a multiple of 32",
    ),
    "offset past the end": (one_tensor("w", [4], TYPE_F32, 2**63), "'w' ends at byte .* file has"),
    "tensor past the end": (one_tensor("w", [17]), "tensor 'w' ends at byte 196, .* has 192"),
    "data missing": (packed(tensors=[tensor("w", [1])]), "tensor 'w' ends at byte"),
    "tensor twice": (
        packed(tensors=[tensor("w", [1]), tensor("w", [1], 0, 32)], data=bytes(64)),
        "tensor 'w' is there twice",
    ),
    "tensors overlap": (
        packed(tensors=[tensor("v", [9], 0, 32), tensor("w", [16])], data=bytes(128)),
        "tensors 'w' and 'v' overlap",
    ),
    "tensor name not UTF-8": (one_tensor(b"\xfe", [1]), "name of tensor 0 is not UTF-8"),
    "tensor name too long": (
        header(1, 1) + ARCHITECTURE + u64(999) + bytes(64),
        "name of tensor 0 needs 999 bytes",
    ),
    "no architecture": (header(0, 0) + bytes(8), "general.architecture is missing"),
    "architecture a number": (
        header(0, 1) + entry("general.architecture", U32, u32(7)),
        "general.architecture is 7, not a string",
    ),
    "architecture empty": (
        header(0, 1) + entry("general.architecture", STRING, text("")),
        "general.architecture is empty",
    ),
    "alignment 0": (packed(entry("general.alignment", U32, u32(0))), "alignment is 0, not a power"),
    "alignment 24": (packed(entry("general.alignment", U32, u32(24))), "alignment is 24, not"),
    "alignment 2**31": (
        packed(entry("general.alignment", U32, u32(2**31))),
        f"alignment is {2**31}, not",
    ),
    "alignment a flag": (packed(entry("general.alignment", BOOL, b"\x01")), "alignment is True"),
    "alignment a string": (
        packed(entry("general.alignment", STRING, text("32"))),
        "alignment is '32'",
    ),
    "line break in a name": (one_tensor("a\nb", []), r"tensor 'a\\nb' has 0"),
}


@pytest.mark.parametrize(("raw", "message"), MALFORMED.values(), ids=MALFORMED)
def test_malformed(scratch, raw, message):
    scratch.write_bytes(raw)
    with pytest.raises(ModelError, match=message) as caught:
        open_gguf(scratch)
    assert_clear(caught.value, scratch)


def assert_clear(error: ModelError, path: Path) -> None:
    """One line, not a long one, that begins with the file."""
    message = str(error)
    assert message.startswith(f"{path}: ")
    assert "\n" not in message
    assert len(message) < len(str(path)) + 400


def test_a_long_name_is_shortened_in_the_message(scratch):
    scratch.write_bytes(one_tensor("x" * 100_000, []))
    with pytest.raises(ModelError, match=r"tensor 'x+\.\.\.x+' has 0 dimensions") as caught:
        open_gguf(scratch)
    assert_clear(caught.value, scratch)


# --- what a hostile file may cost ----------------------------------------------------------


def sparse(path: Path, raw: bytes, size: int) -> Path:
    """A file of ``size`` bytes, zero after ``raw``, that takes no room."""
    with path.open("wb") as file:
        file.write(raw)
        file.truncate(size)
    return path


def test_as_many_keys_and_tensors_as_fit_is_still_too_many(scratch):
    sparse(scratch, header(0, MAX_KEYS + 1), 1 << 30)
    with pytest.raises(ModelError, match=f"number of keys .*: {MAX_KEYS + 1}"):
        open_gguf(scratch)
    sparse(scratch, header(MAX_TENSORS + 1, 1), 1 << 30)
    with pytest.raises(ModelError, match=f"number of tensors .*: {MAX_TENSORS + 1}"):
        open_gguf(scratch)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (array(U8, MAX_HEADER_BYTES), "'a.b' ends beyond the first 128 MiB"),
        (array(STRING, MAX_HEADER_BYTES // 8), "'a.b' has 16777216 elements"),
        (array(STRING, 1, u64(MAX_HEADER_BYTES)), r"'a.b'\[0\] ends beyond the first 128 MiB"),
        (array(ARRAY, MAX_HEADER_BYTES // 8), "'a.b' has 16777216 elements"),
    ],
)
def test_a_header_that_fills_a_huge_file_is_refused_unread(scratch, value, message):
    sparse(scratch, header(0, 2) + ARCHITECTURE + entry("a.b", ARRAY, value), 8 << 30)
    tracemalloc.start()
    try:
        with pytest.raises(ModelError, match=message):
            open_gguf(scratch)
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_large_vocabulary_opens_quickly(scratch):
    words = b"".join(text(f"word {i}") for i in range(262_144))
    merges = b"".join(text(f"left{i} right{i}") for i in range(514_906))
    scratch.write_bytes(
        packed(
            entry("tokenizer.ggml.tokens", ARRAY, array(STRING, 262_144, words)),
            entry("tokenizer.ggml.merges", ARRAY, array(STRING, 514_906, merges)),
        )
    )
    begin = time.process_time()
    with open_gguf(scratch) as gguf:
        seconds = time.process_time() - begin
        assert gguf.metadata["tokenizer.ggml.tokens"][262_143] == "word 262143"
        assert gguf.metadata["tokenizer.ggml.merges"][514_905] == "left514905 right514905"
    assert seconds < 1.0


def survive(path: Path, raw: bytes) -> bool:
    """Whether ``raw`` opens; if not, only by a clear ModelError, and never at a great cost."""
    path.write_bytes(raw)
    tracemalloc.start()
    try:
        with open_gguf(path) as gguf:
            for name, info in gguf.tensors.items():
                assert gguf.data(name).nbytes == info.n_bytes
            assert gguf.n_bytes <= len(raw)
        return True
    except ModelError as error:
        assert_clear(error, path)
        return False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < (1 << 18) + 32 * len(raw), f"{peak} bytes for a file of {len(raw)}"


def test_every_truncation_is_an_error(scratch):
    assert survive(scratch, SMALL)
    assert not any(survive(scratch, SMALL[:n]) for n in range(len(SMALL)))


@pytest.mark.parametrize("value", [u32(2**32 - 1), u64(2**63), u64(2**64 - 1), u64(2**40)])
def test_huge_numbers_anywhere(scratch, value):
    opened = [
        survive(scratch, SMALL[:i] + value + SMALL[i + len(value) :])
        for i in range(len(SMALL) - len(value))
    ]
    # in the texts and in the data they do no harm; in counts, sizes and offsets they do
    assert 0 < sum(opened) < len(opened)


positions = st.integers(0, len(SMALL) - 1)


@settings(max_examples=200, deadline=5000)
@given(changes=st.lists(st.tuples(positions, st.integers(0, 255)), min_size=1, max_size=8))
@example(changes=[(8, 255), (16, 255)])
def test_any_bytes_changed(scratch, changes):
    raw = bytearray(SMALL)
    for position, value in changes:
        raw[position] = value
    survive(scratch, bytes(raw))


@settings(max_examples=100, deadline=5000)
@given(start=positions, length=st.integers(0, 40), replacement=st.binary(max_size=40))
def test_any_stretch_replaced(scratch, start, length, replacement):
    survive(scratch, SMALL[:start] + replacement + SMALL[start + length :])


@settings(max_examples=200, deadline=5000)
@given(
    n_tensors=st.integers(0, 3),
    n_keys=st.integers(0, 3),
    with_architecture=st.booleans(),
    rest=st.binary(max_size=300),
)
def test_random_bytes_after_a_valid_header(scratch, n_tensors, n_keys, with_architecture, rest):
    keys = ARCHITECTURE if with_architecture else b""
    survive(scratch, header(n_tensors, n_keys + with_architecture) + keys + rest)


_small_numbers = st.integers(0, 12) | st.sampled_from([2**31, 2**32 - 1])


@settings(max_examples=200, deadline=5000)
@given(fields=st.lists(_small_numbers, min_size=1, max_size=40), width=st.sampled_from([4, 8]))
def test_plausible_numbers_after_a_valid_header(scratch, fields, width):
    rest = b"".join(value.to_bytes(width, "little") for value in fields)
    survive(scratch, header(1, 2) + ARCHITECTURE + rest)


def test_pure_noise(scratch):
    noise = random.Random(0)
    for size in (1, 3, 24, 100, 10_000):
        assert not survive(scratch, b"GGUF" + u32(3) + noise.randbytes(size))
        assert not survive(scratch, noise.randbytes(size))
