"""Bodies of more parts than a request needs are refused before they are decoded."""

from __future__ import annotations

import json

import msgspec
import pytest

import gguf_serve.server.http.body
from gguf_serve.server.errors import ApiError
from gguf_serve.server.http.body import MAX_PARTS, read_json, read_object

N = MAX_PARTS + 1


@pytest.mark.parametrize(
    "body",
    [
        b"[" + b"[]," * N + b"0]",
        b"[" + b"{}," * N + b"0]",
        b"[" + (b"[" * 512 + b"]" * 512 + b",") * (N // 512 + 1) + b"0]",
        b"[" + b'"",' * N + b"0]",
        b'{"a":' * 600_000 + b"0" + b"}" * 600_000,
        b'["' + b"[" * N + b'",' + b"[]," * N + b"0]",  # brackets that count beside those of a text
        b'["'
        + b"\\" * (gguf_serve.server.http.body.SLICE + 6)
        + b'",'
        + b"[]," * N
        + b"0]",  # escapes across slices
        b'["\\\\",' + b"[]," * N + b"0]",  # a string that ends after what looks like an escape
    ],
)
def test_too_many_parts(monkeypatch: pytest.MonkeyPatch, body: bytes) -> None:
    monkeypatch.setattr(msgspec.json, "decode", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(
        ApiError, match="more than 1048576 arrays, objects, names and str"
    ) as caught:
        read_json(body)
    assert caught.value.status == 413


def test_too_many_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(msgspec.json, "decode", lambda _: pytest.fail("it was decoded"))
    with pytest.raises(ApiError, match="more than 2097152 values") as caught:
        read_json(b"[" + b"1," * (gguf_serve.server.http.body.MAX_VALUES + 1) + b"1]")
    assert caught.value.status == 413


@pytest.mark.parametrize(
    "value",
    [
        {"input": [[65535] * 8192] * 256},
        {"messages": [{"role": "user", "content": 'if (a[i] == "{\\") { f(); }\n' * 300_000}]},
        {"messages": [{"role": "user", "content": "QUJD" * 2**22}]},
        {"prompt": "1,2\n" * 1_500_000 + ", " * 1_000_000},
        {"logit_bias": [[token, -1.5] for token in range(300_000)]},
    ],
)
def test_what_requests_have(value: object) -> None:
    raw = json.dumps(value).encode()
    assert len(raw) > MAX_PARTS
    assert read_object(raw) == value


def test_a_short_body_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        gguf_serve.server.http.body, "n_marks", lambda _: pytest.fail("it was counted")
    )
    assert read_json(b'{"a": [1, "x"]}') == {"a": [1, "x"]}
