"""The schemas of tools that need not hold to the letter, as far as a grammar can hold them.

Programs that offer tools write their schemas for validators: look-ahead in a pattern (zod's
email), types that no draft has, references that lead nowhere. One of them must not take all
tools of a request away, so that what cannot be enforced is any JSON, and the rest holds.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from gguf_serve.engine.grammar.constraint import JSON_OPTIONS
from gguf_serve.engine.grammar.trial import Examination

_DEFINITIONS = ("$defs", "definitions")
MAX_LEVELS = 50  # of parts within parts; llguidance reads JSON of 128 levels, 2 or 3 for each
MAX_EXAMINED = 2**24  # characters: a part is looked at once for each that it is in, and with all
# definitions; half a second


def json_rule(schema: Mapping[str, Any], is_strict: bool) -> str:
    """What in a rule of a Lark grammar stands for JSON that is valid by the schema."""
    return json.dumps({**schema, "x-guidance": {**JSON_OPTIONS, "lenient": not is_strict}})


def enforceable(
    schema: Mapping[str, Any], examination: Examination | None = None
) -> Mapping[str, Any]:
    """The schema, or the most of it that can be enforced."""
    return _Search(examination or Examination()).enforceable(schema, MAX_LEVELS)


class _Search:
    """Finds what can be enforced of one schema, and is not endless."""

    def __init__(self, examination: Examination) -> None:
        self._examination = examination
        self._left = MAX_EXAMINED

    def enforceable(self, schema: Mapping[str, Any], levels: int) -> Mapping[str, Any]:
        return next(form for form in self._forms(schema, levels) if self._holds(form))

    def _holds(self, form: Mapping[str, Any]) -> bool:
        if not form or self._left <= 0:
            return not form
        try:
            rule = json_rule(form, False)
        except RecursionError:
            return False
        self._left -= len(rule)
        return self._examination.fault(rule) is None

    def _forms(self, schema: Mapping[str, Any], levels: int) -> Iterator[Mapping[str, Any]]:
        """Less and less of a schema; the last says nothing."""
        yield schema
        definitions = {name: schema[name] for name in _DEFINITIONS if name in schema}
        parts: dict[str, Any] = {}
        properties = schema.get("properties")
        if isinstance(properties, Mapping):
            parts["properties"] = {
                k: self._part(v, definitions, levels) for k, v in properties.items()
            }
        if "items" in schema:
            parts["items"] = self._part(schema["items"], definitions, levels)
        if parts:
            yield {**schema, **parts}
            yield {"type": schema.get("type"), **parts}
        yield {"type": schema.get("type")}
        yield {}

    def _part(self, schema: Any, definitions: Mapping[str, Any], levels: int) -> Any:
        """A part with what its references point to, which stays at the root."""
        if not isinstance(schema, Mapping):
            return schema
        if levels == 0:
            return {}
        form = self.enforceable({**definitions, **schema}, levels - 1)
        return {name: value for name, value in form.items() if name not in definitions}
