"""The schemas of tools that need not hold to the letter, as far as a grammar can hold them.

Programs that offer tools write their schemas for validators: look-ahead in a pattern (zod's
email), types that no draft has, references that lead nowhere. One of them must not take all
tools of a request away, so that what cannot be enforced is any JSON, and the rest holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from engine.constraint import JSON_OPTIONS
from engine.grammar import schema_fault

_DEFINITIONS = ("$defs", "definitions")


def json_rule(schema: Mapping[str, Any], is_strict: bool) -> str:
    """What in a rule of a Lark grammar stands for JSON that is valid by the schema."""
    return json.dumps({**schema, "x-guidance": {**JSON_OPTIONS, "lenient": not is_strict}})


def enforceable(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """The schema, or the most of it that can be enforced."""
    return next(form for form in _forms(schema) if schema_fault(json_rule(form, False)) is None)


def _forms(schema: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Less and less of a schema; the last says nothing."""
    yield schema
    definitions = {name: schema[name] for name in _DEFINITIONS if name in schema}
    parts: dict[str, Any] = {}
    properties = schema.get("properties")
    if isinstance(properties, Mapping):
        parts["properties"] = {k: _part(v, definitions) for k, v in properties.items()}
    if "items" in schema:
        parts["items"] = _part(schema["items"], definitions)
    if parts:
        yield {**schema, **parts}
        yield {"type": schema.get("type"), **parts}
    yield {"type": schema.get("type")}
    yield {}


def _part(schema: Any, definitions: Mapping[str, Any]) -> Any:
    """A part with what its references point to, which stays at the root."""
    if not isinstance(schema, Mapping):
        return schema
    form = enforceable({**definitions, **schema})
    return {name: value for name, value in form.items() if name not in definitions}
