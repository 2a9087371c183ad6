"""Whether JSON has the shape that a schema says."""

from __future__ import annotations

import pytest

from gguf_serve.engine.chat.unmarked.fits import fits

POINT = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}


@pytest.mark.parametrize(
    ("value", "schema", "expected"),
    [
        (1, {"type": "integer"}, True), (1.0, {"type": "integer"}, True),
        (1.5, {"type": "integer"}, False), (1, {"type": "number"}, True),
        (True, {"type": "integer"}, False), (True, {"type": "boolean"}, True),
        (None, {"type": ["string", "null"]}, True), ("a", {"type": ["number", "null"]}, False),
        ("a", {"enum": ["a", "b"]}, True), ("c", {"enum": ["a", "b"]}, False),
        (5, {"const": 5}, True), (6, {"const": 5}, False),
        ("a", {"anyOf": [{"type": "number"}, {"type": "string"}]}, True),
        ([], {"oneOf": [{"type": "number"}, {"type": "string"}]}, False),
        ([1, 2], {"items": {"type": "integer"}}, True),
        ([1, "a"], {"items": {"type": "integer"}}, False),
        ({"x": 1}, POINT, True), ({}, POINT, False), ({"x": "a"}, POINT, False),
        ({"x": 1, "y": 2}, POINT, False),
        ({"x": 1, "y": 2}, POINT | {"additionalProperties": True}, True),
        ({"y": 2}, {"additionalProperties": {"type": "string"}}, False),
        ({"y": 2}, {}, True), (3, True, True), (3, False, False),
        ([], {"type": "unheard of"}, True),
    ],
)  # fmt: skip
def test_fits(value, schema, expected):
    assert fits(value, schema) is expected


def test_a_pattern_is_not_looked_at():
    """One that takes exponential time, on a client's word, would stop the server."""
    assert fits("a" * 40 + "!", {"type": "string", "pattern": "^(a+)+$"})
