"""Tools with everything in their schemas spelled out, for templates that read it unasked.

A tool may have no description and no parameters, a type may be a list, and an object say nothing
of further properties; some templates take what is not there for text, or never end. As in
acceptable.py this is for them alone, and for the prompt alone: calls are held to the schema as it
was given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Tool = Mapping[str, Any]


def spelled_out(tool: Tool) -> Tool:
    function = tool.get("function")
    if not isinstance(function, Mapping):
        return tool
    parameters = function.get("parameters")
    parameters = parameters if isinstance(parameters, Mapping) else {}
    spelled = {
        **function,
        "description": function.get("description") or "",
        "parameters": {"type": "object", "properties": {}, **_schema(parameters)},
    }
    return {**tool, "function": spelled}


def _part(schema: Any) -> dict[str, Any]:
    """Of a value; Command R+ has objects for maps, and asks what is in them."""
    spelled = _schema(schema)
    return {"additionalProperties": {}, **spelled} if spelled.get("type") == "object" else spelled


def _schema(schema: Any) -> dict[str, Any]:
    if not isinstance(schema, Mapping):
        return {}
    spelled = {name: value for name, value in schema.items() if value is not None}
    if isinstance(spelled.get("properties"), Mapping):
        parts = spelled["properties"].items()
        spelled["properties"] = {name: _part(part) for name, part in parts}
    if "items" in spelled:
        spelled["items"] = _part(spelled["items"])
    if isinstance(spelled.get("type"), list):
        types = spelled.pop("type")
        spelled = {"anyOf": [{"type": type} for type in types], **spelled}
    return spelled
