"""The shapes of errors, and what a client has given as messages show it: its beginning."""

from __future__ import annotations

import json
import tracemalloc

import pytest

from gguf_serve.server.dialects.table import error_response
from gguf_serve.server.errors import ApiError, shown

PAYLOAD = "payload_too_large_error"


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/chat/completions", {"error": {"code": 413, "message": "m", "type": PAYLOAD}}),
        ("/v1/nothing", {"error": {"code": 413, "message": "m", "type": PAYLOAD}}),
        (
            "/v1/messages/nothing",
            {"type": "error", "error": {"type": "request_too_large", "message": "m"}},
        ),
        ("/api/nothing", {"error": "m"}),
    ],
)
def test_the_path_tells_the_shape(path: str, expected: object) -> None:
    response = error_response(ApiError(PAYLOAD, "m"), path)
    assert response.status_code == 413
    assert json.loads(bytes(response.body)) == expected


@pytest.mark.parametrize(
    "value",
    [None, 1.5, "it's", "é" * 500, [1, [2, {"a": "b" * 500}]], {"a": {"b": []}, "c": [None] * 99}],
)
def test_shown(value: object) -> None:
    assert shown(value) == repr(value)[:80]


@pytest.mark.parametrize("value", ["x" * 10**7, [1] * 10**6, {str(n): n for n in range(10**5)}])
def test_only_the_beginning_is_looked_at(value: object) -> None:
    tracemalloc.start()
    assert len(shown([{"a": value}])) == 80
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 50_000


def test_deep_values() -> None:
    value: object = 1
    for _ in range(10_000):
        value = [value]
    assert shown(value).startswith("[[[[")
