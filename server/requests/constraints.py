"""What a request asks the text to match: response formats, schemas, grammars, in any spelling."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import msgspec

from gguf_serve.engine.grammar.constraint import Constraint, Kind, Trigger
from gguf_serve.server.errors import invalid, shown
from gguf_serve.server.interface import Engine, Tokenizer
from gguf_serve.server.requests.fields import GenerationFields, StructuredOutputs
from gguf_serve.server.requests.workers import Workers

ANY_OBJECT = {"type": "object"}
COMPILERS = Workers(2, "grammar")
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
    given = [
        *of_llama_server(fields),
        *guided("guided_", guided_fields(fields)),
        *guided("structured_outputs.", fields.structured_outputs),
    ]
    if len(given) > 1:
        names = " and ".join(f"'{name}'" for name, _, _ in given)
        raise invalid(f"Fields {names}: only one of them can be given")
    triggers = read_triggers(fields, tokenizer)
    if not given:
        asked_for_text = fields.response_format is not None
        return None if asked_for_text else default
    _, kind, text = given[0]
    return Constraint(kind, text, triggers, preserved=tuple(fields.preserved_tokens or ()))


def of_llama_server(fields: GenerationFields) -> Iterator[tuple[str, Kind, str]]:
    """What is asked for: the field, and of which kind its text is."""
    grammars: tuple[tuple[str, Kind, str | None], ...] = (
        ("grammar", "gbnf", fields.grammar),
        ("regex", "regex", fields.regex),
        ("ebnf", "gbnf", fields.ebnf),
    )
    for name, kind, text in grammars:
        if text:
            yield name, kind, text
    schemas = (
        ("json_schema", fields.json_schema),
        ("response_format", response_schema(fields.response_format)),
    )
    for name, schema in schemas:
        if schema is not None:
            yield name, "json_schema", encoded(schema)


def guided_fields(fields: GenerationFields) -> StructuredOutputs:
    """vLLM's older names for the parts of ``structured_outputs``."""
    return StructuredOutputs(
        fields.guided_json, fields.guided_regex, fields.guided_choice, fields.guided_grammar
    )


def guided(prefix: str, asked: StructuredOutputs | None) -> Iterator[tuple[str, Kind, str]]:
    """The same of vLLM's fields, whose names begin with ``prefix``."""
    if asked is None:
        return
    if asked.structural_tag is not None:
        raise invalid(f"Field '{prefix}structural_tag' is not supported by this server: use tools")
    if asked.json is not None:
        yield f"{prefix}json", "json_schema", schema_text(f"{prefix}json", asked.json)
    if asked.json_object:
        yield f"{prefix}json_object", "json_schema", encoded(ANY_OBJECT)
    if asked.regex:
        yield f"{prefix}regex", "regex", asked.regex
    if asked.choice is not None:
        yield f"{prefix}choice", "lark", one_of(f"{prefix}choice", asked.choice)
    if asked.grammar:
        # Both are called EBNF; only GBNF has this sign.
        yield f"{prefix}grammar", "gbnf" if "::=" in asked.grammar else "lark", asked.grammar


def schema_text(name: str, schema: str | dict[str, Any] | bool) -> str:
    """A schema, or its JSON."""
    if not isinstance(schema, str):
        return encoded(schema)
    try:
        value = msgspec.json.decode(schema)
    except msgspec.DecodeError as error:
        raise invalid(f"Field '{name}': expected a JSON schema, or its text: {error}") from None
    if not isinstance(value, dict | bool):
        raise invalid(f"Field '{name}': expected a JSON schema, got {shown(value)}")
    return schema


def one_of(name: str, texts: Sequence[str]) -> str:
    """A grammar in Lark of these texts."""
    if not texts or "" in texts:
        raise invalid(f"Field '{name}': expected texts that are not empty, got {shown(texts)}")
    return "start: " + " | ".join(encoded(text) for text in texts)


def encoded(value: Any) -> str:
    return msgspec.json.encode(value).decode()


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
        await COMPILERS.run(engine.compile, constraint)
    return constraint
