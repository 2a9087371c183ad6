"""Whether JSON fits a schema, as far as its shape goes: enough to tell a call from other text.

Keywords that look into texts and numbers (patterns, formats, limits) are not looked at, nor are
references: a client's pattern may take any time to match.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,), "number": (int, float), "integer": (int,), "boolean": (bool,),
    "object": (dict,), "array": (list,), "null": (type(None),),
}  # fmt: skip


def fits(value: Any, schema: Any) -> bool:
    """Types, enumerations, and of objects their required and other members."""
    if not isinstance(schema, Mapping):
        return schema is not False
    kinds = schema.get("type")
    if kinds is not None and not any(is_a(value, kind) for kind in listed(kinds)):
        return False
    if isinstance(schema.get("enum"), list) and value not in schema["enum"]:
        return False
    if "const" in schema and value != schema["const"]:
        return False
    for name in ("anyOf", "oneOf"):
        if isinstance(schema.get(name), list) and not any(fits(value, s) for s in schema[name]):
            return False
    if isinstance(value, dict):
        return _members_fit(value, schema)
    if isinstance(value, list) and "items" in schema:
        return all(fits(item, schema["items"]) for item in value)
    return True


def _members_fit(value: Mapping[str, Any], schema: Mapping[str, Any]) -> bool:
    required, properties = schema.get("required"), schema.get("properties")
    if isinstance(required, list) and any(name not in value for name in required):
        return False
    known = properties if isinstance(properties, Mapping) else {}
    # A tool's functions know no arguments but those that are declared, whatever else is allowed.
    others = schema.get("additionalProperties", not known)
    return all(fits(member, known.get(name, others)) for name, member in value.items())


def is_a(value: Any, kind: Any) -> bool:
    if isinstance(value, bool):
        return bool(kind == "boolean")
    if kind == "integer" and isinstance(value, float):
        return value.is_integer()
    kinds: tuple[type, ...] = TYPES.get(str(kind), (object,))
    return isinstance(value, kinds)


def listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
