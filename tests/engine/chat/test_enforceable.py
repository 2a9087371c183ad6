"""Schemas of tools as validators want them: what no grammar can hold is any JSON."""

from __future__ import annotations

import time
from typing import Any

import pytest

from gguf_serve.engine.chat.enforceable import enforceable
from gguf_serve.engine.chat.lark import Lark
from gguf_serve.engine.errors import RequestError

# zod's, of z.email(): every agent has a tool with it
EMAIL = {"type": "string", "pattern": r"^(?!\.)(?!.*\.\.)[a-z.]+@[a-z]+$"}
AGE = {"type": "integer", "minimum": 3}


def of(properties: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), **more}


def test_what_can_be_enforced_stays_as_it_is():
    schema = of({"age": AGE, "tags": {"type": "array", "items": {"type": "string"}}})
    assert enforceable(schema) is schema


def test_only_the_part_that_cannot_be_enforced_is_loosened():
    assert enforceable(of({"to": EMAIL, "age": AGE})) == of({"to": {"type": "string"}, "age": AGE})
    people = {"type": "array", "items": of({"to": EMAIL, "age": AGE}), "minItems": 1}
    loose = {**people, "items": of({"to": {"type": "string"}, "age": AGE})}
    assert enforceable(of({"people": people})) == of({"people": loose})


def test_a_choice_with_such_a_part_is_any_json():
    assert enforceable(of({"to": {"anyOf": [EMAIL, {"type": "null"}]}})) == of({"to": {}})


def test_references_are_followed_and_lead_nowhere_without_harm():
    definitions = {"Email": EMAIL, "Age": AGE}
    schema = of(
        {name: {"$ref": f"#/$defs/{name}"} for name in ("Email", "Age", "None")},
        **{"$defs": definitions},
    )
    age = {"$ref": "#/$defs/Age"}
    expected = of({"Email": {}, "Age": age, "None": {}}, **{"$defs": definitions})
    assert enforceable(schema) == expected


@pytest.mark.parametrize(
    ("odd", "left"),
    [
        (of({"x": {"type": "any"}}), of({"x": {}})),
        ({"type": "object", "properties": 5}, {"type": "object"}),
        ({"type": "object", "required": "x"}, {"type": "object"}),
        ({"type": "any"}, {}),
    ],
)
def test_malformed_schemas(odd: dict[str, Any], left: dict[str, Any]):
    assert enforceable(odd) == left


def nested(levels: int, inner: dict[str, Any]) -> dict[str, Any]:
    for _ in range(levels):
        inner = of({"a": inner})
    return inner


@pytest.mark.parametrize("levels", [100, 300, 490])
def test_what_is_nested_too_deeply_is_any_json(levels: int):
    form = enforceable(nested(levels, EMAIL))
    depth = 0
    while form and "a" in form.get("properties", {}):
        form, depth = form["properties"]["a"], depth + 1
    assert (depth > 20 or levels > 300, form.get("properties")) == (True, None)
    with pytest.raises(RequestError, match="strict tool 'f': it is nested too deeply"):
        Lark(strict=["f"]).arguments("f", nested(levels, AGE))


def test_a_schema_is_not_looked_at_without_end():
    """All definitions count for each of the parts: 3 GB of text."""
    parts = {f"a{i}": {"$ref": f"#/$defs/{i}", "description": f"{i}"} for i in range(3000)}
    definitions = {str(i): {**AGE, "description": "x" * 300} for i in range(3000)}
    begin = time.process_time()
    assert enforceable(of({**parts, "to": EMAIL}, **{"$defs": definitions})) == {}
    assert time.process_time() - begin < 10


def test_a_strict_tool_holds_to_the_letter_or_is_refused_by_its_name():
    lark = Lark()
    lark.arguments("mail", of({"to": EMAIL}))
    assert "pattern" not in lark.grammar("r0").replace("whitespace_pattern", "")
    with pytest.raises(RequestError, match=r"(?s)parameters of the strict tool 'mail': .*look-ahe"):
        Lark(strict=["mail"]).arguments("mail", of({"to": EMAIL}))
