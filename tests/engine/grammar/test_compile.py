"""What is compiled, and what is refused with which reason."""

from __future__ import annotations

import json
import threading
from typing import Any

import numpy as np
import pytest
from byte_vocabulary import N_VOCAB, ByteVocabulary, follow

from gguf_serve.engine.errors import EngineError, RequestError
from gguf_serve.engine.grammar import trial as grammar_trial
from gguf_serve.engine.grammar.compile import Grammars
from gguf_serve.engine.grammar.constraint import Constraint, Kind
from gguf_serve.engine.grammar.guide import Guide
from gguf_serve.engine.grammar.source import MAX_TEXT


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(ByteVocabulary(), N_VOCAB)


@pytest.mark.parametrize(
    ("kind", "text", "reason"),
    [
        ("json_schema", "{", "JSON schema: Expecting property name"),
        ("json_schema", "[1]", r"an object or true, not \[1\]"),
        ("json_schema", "false", "an object or true, not false"),
        ("json_schema", '{"type": "strin"}', "Invalid type: strin"),
        ("json_schema", '{"type": "array", "uniqueItems": true}', "uniqueItems"),
        ("json_schema", '{"x-guidance": {"lenient": true}, "not": {}}', '"not"'),
        ("json_schema", '{"type": "string", "format": "zip"}', "Unknown format: zip"),
        ("json_schema", '{"type": "string", "pattern": "("}', "unclosed group"),
        ("json_schema", '{"$ref": "#/$defs/none"}', "/none"),
        ("json_schema", '{"$ref": "http://localhost/schema"}', "does not fetch"),
        ("json_schema", '{"oneOf": [{"type": "number"}, {"type": "integer"}]}', "oneOf"),
        # Python's reader refuses it up to 3.11, later ones leave that to llguidance.
        ("json_schema", '{"a":' * 5000 + "1" + "}" * 5000, "(recursion|nested too deeply)"),
        ("json_schema", '{"a":' * 500 + "1" + "}" * 500, "it is nested too deeply"),
        ("json_schema", " " * (MAX_TEXT + 1), "1048577 characters, at most 1048576"),
        ("regex", "(a", "regex: .*unclosed group"),
        ("gbnf", "root ::= other", "grammar: .*'other' not found"),
        ("gbnf", 'rest ::= "a"', "No 'root' rule"),
        ("gbnf", "root ::= " + "(" * 3000 + '"a"' + ")" * 3000, "recursion"),
        ("gbnf", 'root ::= "' + "a" * 2**16 + '"', "65547 characters, at most 65536"),
        ("gbnf", 'root ::= "a"\n' + 'r ::= "b"\n' * 1000, "1001 rules, at most 1000"),
        ("lark", 'start: "a" b', 'Lark grammar: .*unknown name: "b"'),
        ("lark", "start: <|none|>", "unknown special token"),
    ],
)
def test_refused_with_a_reason(grammars: Grammars, kind: Kind, text: str, reason: str) -> None:
    with pytest.raises(RequestError, match=f"(?s)invalid .*{reason}"):
        grammars.matcher(Constraint(kind, text))


def test_compiled_once_and_used_apart(grammars: Grammars, monkeypatch: pytest.MonkeyPatch) -> None:
    constraint = Constraint("regex", "[ab]{4}x")
    first = grammars.matcher(constraint)
    assert first.consume_token(ord("a"))
    monkeypatch.setattr("gguf_serve.engine.grammar.compile.LLMatcher", None)
    second = grammars.matcher(constraint)
    assert second.validate_tokens(list(b"abbax")) == 5
    assert first.validate_tokens(list(b"bbax")) == 4


def test_tokens_by_their_numbers(grammars: Grammars) -> None:
    """llguidance's Lark has them, and the vocabulary of the trial is not the model's."""
    matcher = grammars.matcher(Constraint("lark", f'start: <[{N_VOCAB - 30}]> "x"'))
    assert matcher.validate_tokens([N_VOCAB - 30, ord("x")]) == 2
    with pytest.raises(RequestError, match="range end too large"):
        grammars.matcher(Constraint("lark", f"start: <[{N_VOCAB}]>"))


def test_from_many_threads(grammars: Grammars) -> None:
    found: list[Any] = []

    def compile(i: int) -> None:
        found.append(grammars.matcher(Constraint("regex", f"x{i}", preserved=("<|call|>",))))

    threads = [threading.Thread(target=compile, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 8


def test_a_vocabulary_for_each_set_of_control_tokens(grammars: Grammars) -> None:
    def vocabulary(*preserved: str) -> object:
        return grammars.tokenizer(Constraint("regex", "x", preserved=preserved))

    assert vocabulary() is vocabulary("no token", "true") is not vocabulary("<|call|>")


def test_a_model_without_an_end_has_no_grammars() -> None:
    vocabulary = ByteVocabulary()
    vocabulary.eog_ids = frozenset()
    with pytest.raises(RequestError, match="ends generation"):
        Grammars(vocabulary, N_VOCAB).matcher(Constraint("regex", "x"))


@pytest.mark.parametrize(
    ("grammar", "good", "bad"),
    [
        ('root ::= "yes" | "no"', ["yes", "no"], ["ye", "maybe", "yesno"]),
        (
            'root ::= item+\nitem ::= "- " [^\\r\\n\\x0b\\x0c\\x85\\u2028\\u2029]+ "\\n"',
            ["- a\n- b c\n"],
            ["a\n", "- a", "- \n"],
        ),
        (
            'root ::= (expr "=" term "\\n")+\nexpr ::= term ([-+*/] term)*\n'
            'term ::= num | "(" expr ")"\nnum ::= [0-9]+',
            ["1+2=3\n", "(4*(5-6))=7\n1=1\n"],
            ["1+=3\n", "(1=1\n", "x=1\n"],
        ),
        ('root ::= "a"{2,3} "b"? # twice\n', ["aa", "aaab"], ["a", "aaaa"]),
        ("root ::= [ぁ-んァ-ン]+ .", ["こン!"], ["x!", "こ\n"]),
    ],
)
def test_gbnf(grammars: Grammars, grammar: str, good: list[str], bad: list[str]) -> None:
    for texts, valid in ((good, True), (bad, False)):
        for text in texts:
            matcher = grammars.matcher(Constraint("gbnf", grammar))
            tokens = list(text.encode())
            whole = matcher.validate_tokens(tokens) == len(tokens)
            assert (whole and matcher.consume_tokens(tokens) and matcher.is_accepting()) is valid


def test_an_object_of_thousands_of_optional_properties(grammars: Grammars) -> None:
    properties = {f"p{i}": {"type": "integer"} for i in range(2000)}
    schema = json.dumps({"type": "object", "properties": properties})
    guide = Guide(Constraint("json_schema", schema), grammars)
    follow(guide, list(b'{"p1": 2, "p1999": 3}'))


def test_a_grammar_at_its_limits_ends_its_request_and_no_later_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whoever reaches them shares a lexer with those who come after."""
    monkeypatch.setattr("gguf_serve.engine.grammar.source.MAX_STATES", 300)
    grammars = Grammars(ByteVocabulary(), N_VOCAB)
    text = np.random.default_rng(1).choice(list(b"abcd"), 2000).tolist()
    for _ in range(2):
        guide = Guide(Constraint("regex", "(.*[ab].{12}){80}"), grammars)
        follow(guide, text[:10])
        with pytest.raises(EngineError, match="too many states"):
            follow(guide, text[10:])


def test_only_short_schemas_are_kept():
    """Of 4096, each of which a client may make as long as it likes."""
    grammar_trial._cached_fault.cache_clear()
    for schema in ({"type": "object"}, {"type": "object", "description": "x" * 2**20}):
        assert grammar_trial.schema_fault(json.dumps(schema)) is None
    assert grammar_trial._cached_fault.cache_info().currsize == 1
