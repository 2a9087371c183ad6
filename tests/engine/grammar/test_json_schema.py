"""Schemas are enforced: the official JSON-Schema-Test-Suite, and random choices.

data/json_schema_suite.json holds the suite's draft 2020-12 without those optional parts that
are about refused features (https://github.com/json-schema-org/JSON-Schema-Test-Suite, MIT,
Copyright (c) 2012 Julian Berman): by file, groups of a schema and [what, instance, valid].
"""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from byte_vocabulary import EOS, N_VOCAB, ByteVocabulary, allowed
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.grammar.compile import Grammars
from gguf_serve.engine.grammar.constraint import Constraint, inline_schema
from gguf_serve.engine.grammar.guide import Guide

FORMATS = jsonschema.FormatChecker(["ipv4"])
SUITE = json.loads((Path(__file__).parents[1] / "data" / "json_schema_suite.json").read_text())
# The groups whose schema is refused, by file: it needs a keyword that is not enforced.
REFUSED = {
    "additionalProperties": 2, "allOf": 2, "anyOf": 1, "boolean_schema": 1, "const": 1,
    "contains": 7, "defs": 1, "dependentRequired": 4, "dependentSchemas": 4, "dynamicRef": 20,
    "enum": 1, "format": 9, "if-then-else": 10, "maxContains": 4, "minContains": 8,
    "multipleOf": 1, "not": 9, "oneOf": 9, "patternProperties": 3, "propertyNames": 6, "ref": 6,
    "refRemote": 15, "unevaluatedItems": 27, "unevaluatedProperties": 41, "uniqueItems": 6,
    "vocabulary": 2, "optional/bignum": 4,
}  # fmt: skip
# Valid, but not generated: another order, another spelling of a number, a form of an address.
STRICT = (
    "allOf", "with different property order", "float", "[0.0]", "[1.0]", "zero fractional part",
    "only an annotation by default", "overflow handling", "quoted string", "after the @",
    "mixed format", "a long valid ipv6",
)  # fmt: skip
LAX = ("leap second", "leap year", "29 days in February (normal)")  # no regular language


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(ByteVocabulary(), N_VOCAB)


def compiles(grammars: Grammars, schema: Any) -> bool:
    try:
        grammars.matcher(Constraint("json_schema", json.dumps(schema)))
    except RequestError:
        return False
    return True


def takes(grammars: Grammars, schema: Any, instance: Any) -> bool:
    """Whether all of an instance's JSON may be generated."""
    matcher = grammars.matcher(Constraint("json_schema", json.dumps(schema)))
    tokens = list(json.dumps(instance, ensure_ascii=False).encode())
    whole = matcher.validate_tokens(tokens) == len(tokens)
    return whole and matcher.consume_tokens(tokens) and matcher.is_accepting()


def test_the_suite(grammars: Grammars) -> None:
    refused: Counter[str] = Counter()
    n_valid = n_invalid = 0
    for name, groups in SUITE.items():
        for group in groups:
            schema = group["schema"]
            if not compiles(grammars, schema):
                refused[name] += 1
                continue
            for what, instance, valid in group["tests"]:
                taken = takes(grammars, schema, instance)
                n_valid += valid and taken
                n_invalid += not valid and not taken
                known = STRICT if valid else LAX
                where = f"{name}: {group['description']}: {what}"
                assert taken == valid or any(words in where for words in known), where
    assert dict(refused) == REFUSED
    assert (n_valid, n_invalid) == (507, 379)


SCHEMAS: list[dict[str, Any]] = [
    {
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "tags": {"type": "array", "items": {"enum": ["a", "b", 3]}, "maxItems": 3},
            "at": {"anyOf": [{"type": "string", "pattern": "^[A-Z]{2}[0-9]+$"}, {"type": "null"}]},
        },
        "required": ["name", "age", "at"],
        "additionalProperties": False,
    },
    {
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {"left": {"$ref": "#/$defs/tree"}, "value": {"type": "number"}},
                "required": ["value"],
                "additionalProperties": False,
            }
        },
        "$ref": "#/$defs/tree",
    },
    {"type": "array", "prefixItems": [{"const": "x"}, {"type": "boolean"}], "items": False},
    {"type": "object", "additionalProperties": {"type": "number", "multipleOf": 0.5}},
    {
        "oneOf": [
            {"type": "object", "properties": {"k": {"const": k}, k: {}}, "required": ["k"]}
            for k in ("a", "b")
        ]
    },
    {"type": ["string", "integer"], "format": "ipv4", "exclusiveMinimum": 3},
]


@pytest.mark.parametrize("schema", SCHEMAS)
@given(seed=st.integers(0, 2**32 - 1))
@settings(max_examples=25, deadline=None)
def test_random_choices_are_valid(grammars: Grammars, schema: dict[str, Any], seed: int) -> None:
    """Whatever the logits are, what has ended by itself parses and is valid."""
    random = np.random.default_rng(seed)
    logits = 5 * random.standard_normal(N_VOCAB)  # of one mind, so that loops are likely
    logits[[EOS, *b'"]}']] += 5  # and of a mind to end
    guide = Guide(Constraint("json_schema", json.dumps(schema)), grammars)
    text = b""
    for _ in range(400):
        choices = sorted(allowed(guide))
        assert choices
        noisy = logits[choices] + 2 * random.gumbel(size=len(choices))
        token = choices[int(noisy.argmax())]
        guide.accept(token)
        if token == EOS:
            jsonschema.validate(json.loads(text), schema, format_checker=FORMATS)
            return
        text += ByteVocabulary.pieces[token]


def test_a_key_has_one_spelling(grammars: Grammars) -> None:
    """Else the rule for a property could be evaded by another."""
    schema = json.dumps({"properties": {"foo": {"type": "integer"}}})
    for rule in (Constraint("json_schema", schema), lark(schema)):
        matcher = grammars.matcher(rule)
        assert matcher.validate_tokens(list(b'{"a": 1')) == 7
        assert matcher.validate_tokens(list(rb'{"f\u006fo": "x"}')) == 4


def lark(schema: str) -> Constraint:
    return Constraint("lark", f"start: {inline_schema(json.loads(schema))}")


def test_control_characters_are_refused(grammars: Grammars) -> None:
    """JSON has them as \\u only; a backslash and a u are another text."""
    with pytest.raises(RequestError, match=r"control character \\u0001"):
        grammars.matcher(Constraint("json_schema", json.dumps({"const": "a\x01"})))
    assert takes(grammars, {"const": "a\\u0001\n"}, "a\\u0001\n")


def test_limits_may_be_written_with_a_point(grammars: Grammars) -> None:
    assert takes(grammars, {"type": "string", "maxLength": 2.0}, "ab")
    assert not takes(grammars, {"type": "string", "maxLength": 2.0}, "abc")
