"""What a request asks the text to match: response formats, schemas, grammars, in any spelling."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal

import msgspec

from gguf_serve.engine.grammar.constraint import Constraint, Kind, Trigger
from gguf_serve.server.errors import invalid, shown
from gguf_serve.server.interface import Engine, Tokenizer
from gguf_serve.server.requests.fields import GenerationFields

ANY_OBJECT = {"type": "object"}
COMPILERS = ThreadPoolExecutor(2, "grammar")
MAX_TRIGGERS, MAX_TRIGGER = 64, 1000  # words, all of which are looked for in all free text
TOKEN, WORD, PATTERN, WHOLE_PATTERN = range(4)  # llama-server's types of triggers


class ResponseFormat(msgspec.Struct):
    """Also with ``schema`` beside the type, as other servers have it."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: dict[str, Any] | None = None
    schema: dict[str, Any] | bool | None = None


def read_constraint(
    fields: GenerationFields, default: Constraint | None, tokenizer: Tokenizer
) -> Constraint | None:
    """The one constraint of a request, or what the command line says; ApiError if it has two."""
    grammars: tuple[tuple[str, Kind, str | None], ...] = (
        ("grammar", "gbnf", fields.grammar or None),
        ("regex", "regex", fields.regex or None),
        ("guided_regex", "regex", fields.guided_regex or None),
        ("json_schema", "json_schema", encoded(fields.json_schema)),
        ("response_format", "json_schema", encoded(response_schema(fields.response_format))),
    )
    given = [(name, kind, text) for name, kind, text in grammars if text is not None]
    if len(given) > 1:
        names = " and ".join(f"'{name}'" for name, _, _ in given)
        raise invalid(f"Fields {names}: only one of them can be given")
    triggers = read_triggers(fields, tokenizer)
    if not given:
        asked_for_text = fields.response_format is not None
        return None if asked_for_text else default
    _, kind, text = given[0]
    return Constraint(kind, text, triggers, preserved=tuple(fields.preserved_tokens or ()))


def encoded(schema: Any) -> str | None:
    return None if schema is None else msgspec.json.encode(schema).decode()


def response_schema(value: dict[str, Any] | None) -> dict[str, Any] | bool | None:
    """The schema that a response_format asks for; None for text."""
    if value is None:
        return None
    try:
        given = msgspec.convert(value, ResponseFormat)
    except msgspec.ValidationError as error:
        raise invalid(f"Field 'response_format': {error}") from None
    if given.type == "text":
        return None
    nested = given.json_schema or {}
    schema = nested.get("schema", given.schema)
    if given.type == "json_object":
        return schema or ANY_OBJECT
    if not isinstance(schema, dict | bool):
        raise invalid("Field 'response_format': json_schema has no 'schema'")
    return schema


def read_triggers(fields: GenerationFields, tokenizer: Tokenizer) -> tuple[Trigger, ...]:
    if not fields.grammar_lazy:
        return ()
    if not fields.grammar:
        raise invalid("Field 'grammar_lazy': there is no 'grammar'")
    if not fields.grammar_triggers:
        raise invalid("Field 'grammar_triggers': a lazy grammar needs one at least")
    n = len(fields.grammar_triggers)
    if n > MAX_TRIGGERS:
        raise invalid(f"Field 'grammar_triggers': {n} of them, at most {MAX_TRIGGERS} are taken")
    return tuple(read_trigger(trigger, tokenizer) for trigger in fields.grammar_triggers)


def read_trigger(value: dict[str, Any], tokenizer: Tokenizer) -> Trigger:
    """A word or a token. Patterns may take any time to match, so that clients have none."""
    kind, word, token = value.get("type"), value.get("value"), value.get("token")
    if kind == TOKEN and type(token) is int and 0 <= token < tokenizer.n_vocab:
        return Trigger(tokenizer.piece(token, special=True).decode(errors="replace"))
    if kind == WORD and isinstance(word, str) and len(word) > MAX_TRIGGER:
        raise invalid(
            f"Field 'grammar_triggers': a word of {len(word)} characters, at most {MAX_TRIGGER} "
            "are taken"
        )
    if kind == WORD and isinstance(word, str) and word:
        return Trigger(word)
    if kind in (PATTERN, WHOLE_PATTERN):
        raise invalid("Field 'grammar_triggers': patterns are not supported by this server")
    raise invalid(f"Field 'grammar_triggers': expected a word or a token, got {shown(value)}")


async def compiled(engine: Engine, constraint: Constraint | None) -> Constraint | None:
    """Compile in a thread of those that wait for it: a large schema takes seconds. The engine's
    refusal is raised here."""
    if constraint is not None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(COMPILERS, engine.compile, constraint)
    return constraint
