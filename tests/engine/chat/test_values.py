import json

import pytest
from reading import drive

from gguf_serve.engine.chat.scanner import MalformedError, Scanner, marks
from gguf_serve.engine.chat.values import as_json, kinds_of, parameter_schema, read_value

STRING = frozenset({"string"})


@pytest.mark.parametrize(
    ("schema", "kinds"),
    [
        ({}, set()),
        ({"type": "string"}, {"string"}),
        ({"type": ["string", "null"]}, {"string", "null"}),
        ({"type": "integer", "nullable": True}, {"integer", "null"}),
        ({"enum": ["a", 1, True, None]}, {"string", "integer", "boolean", "null"}),
        ({"const": [1]}, {"array"}),
        ({"anyOf": [{"type": "string"}, {"type": "null"}]}, {"string", "null"}),
        ({"oneOf": [{"type": "string"}, {}]}, set()),
        ({"allOf": [{}, {"type": "object"}]}, {"object"}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"type": "number"}}}, {"number"}),
        ({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}, set()),
        ({"$ref": "#/nowhere"}, set()),
    ],
)
def test_kinds(schema, kinds):
    assert kinds_of(schema) == kinds


def test_schema_of_a_parameter():
    tools = {"f": {"properties": {"a": {"$ref": "#/$defs/x"}}, "$defs": {"x": {"type": "null"}}}}
    assert parameter_schema(tools, "f", "a") == {"type": "null"}
    assert parameter_schema(tools, "f", "b") == parameter_schema(tools, "g", "a") == {}
    assert parameter_schema({"f": {"additionalProperties": {"type": "x"}}}, "f", "b")


@pytest.mark.parametrize(
    ("text", "kinds", "value"),
    [
        ("1", set(), 1),
        ("1", {"string"}, "1"),
        ("1", {"integer"}, 1),
        ("1", {"number"}, 1),
        ("1.0", {"integer"}, 1.0),
        ("True", {"boolean"}, True),
        ("null", {"string", "null"}, None),
        ("2 dollars", {"integer"}, "2 dollars"),
        ('{"a": 1}', {"object", "string"}, {"a": 1}),
        ("{a: 1}", {"object", "string"}, "{a: 1}"),
        ("NaN", {"number"}, "NaN"),
        (" x\n", set(), " x\n"),
    ],
)
@pytest.mark.parametrize("step", [1, 100])
def test_values(text, kinds, value, step):
    assert json.loads(as_json(text, frozenset(kinds))) == value
    scanner, sent = Scanner(), []
    whole = text + "</v>"
    reader = read_value(scanner, marks("</v>"), frozenset(kinds), sent.append)
    drive(scanner, reader, *(whole[i : i + step] for i in range(0, len(whole), step)))
    assert json.loads("".join(sent)) == value


def test_a_string_is_sent_while_it_is_written():
    scanner, sent = Scanner(), []
    reader = read_value(scanner, marks("</v>"), STRING | {"null"}, sent.append)
    next(reader)
    for piece, so_far in (("n", ""), ("ul", ""), ("lify", '"nullify'), ('"</', '"nullify\\"')):
        scanner.feed(piece)
        next(reader)
        assert "".join(sent) == so_far


def test_a_value_without_end_is_refused():
    scanner, sent = Scanner(), []
    with pytest.raises(MalformedError):
        drive(scanner, read_value(scanner, marks("</v>"), STRING, sent.append), "ab")
    assert "".join(sent) == '"ab'
