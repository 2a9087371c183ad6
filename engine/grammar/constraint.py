"""What a completion's text must match: plain data, compiled by compile.py."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Literal, NamedTuple

from msgspec import Struct

# How schemas are enforced, in the words of llguidance's docs/json_schema.md.
JSON_OPTIONS = {
    # Models in doubt write white space for ever: it is bounded between JSON's tokens.
    "whitespace_pattern": r"[\x20\x0A\x0D\x09]{1,64}",
    # Without \u: a key written with it would pass as another than the one it is.
    "json_allowed_escapes": 'nrbtf\\"',
    "lenient": False,  # what cannot be enforced is an error, whatever the schema says
    "coerce_one_of": False,
}

Kind = Literal["json_schema", "regex", "gbnf", "lark"]


class Trigger(NamedTuple):
    """Where a lazy constraint begins to hold: at a word, or where a pattern matches.

    The grammar covers the word itself; of a pattern, the text from its first group on, or
    from the match if it has no group. Patterns are Python's, over UTF-8 bytes, and come from
    this program only, never from a client: their time has no limit.
    """

    text: str
    is_pattern: bool = False


class Constraint(Struct, frozen=True):
    """A grammar, and from where on it holds.

    ``text`` is a JSON schema, a regular expression (Rust's syntax, matched as a whole),
    llama.cpp's GBNF, or llguidance's Lark, in which ``inline_schema`` is a schema's JSON.

    With ``triggers`` the text is free until the first of them appears, and from there on it
    must match; without, it must match from the first token on.

    With ``reasoning`` (its start and end tag) the grammar holds for the answer after the
    reasoning: the text is free up to the end tag, and generation cannot end before. Reasoning
    is open at the beginning if ``prefix`` has opened it or the start tag is empty; else the
    model may open it first. A token of white space may follow the end tag. Words are not
    looked for inside of reasoning, patterns are looked for everywhere.

    ``prefix`` is the end of the prompt that belongs to the answer, such as what a template
    writes to open it; triggers and tags are looked for in it, too.

    Control tokens never match text in a grammar, save those whose texts are in ``preserved``.
    """

    kind: Kind
    text: str
    triggers: tuple[Trigger, ...] = ()
    reasoning: tuple[str, str] | None = None
    prefix: str = ""
    preserved: tuple[str, ...] = ()


def inline_schema(schema: Mapping[str, Any]) -> str:
    """What in a rule of a Lark grammar stands for the JSON that is valid by a schema."""
    return "%json " + json.dumps({**schema, "x-guidance": JSON_OPTIONS})
