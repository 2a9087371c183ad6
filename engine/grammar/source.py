"""Grammars of any kind as llguidance's own form, and what is wrong with them.

May take any time and memory, for what is short, too: the automaton for a multiple of a large
prime, or for patterns of properties that may meet. What a client sends is looked at in a child
process (trial.py).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, cast

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, grammar_from

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.grammar.constraint import JSON_OPTIONS, Kind

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

MAX_TEXT = 2**20  # characters; a schema of so many takes about a second
# Converting GBNF takes the square of its rules in the worst case: 2 seconds for so many.
MAX_GBNF_TEXT, MAX_GBNF_RULES = 2**16, 1000
MAX_ITEMS = 20_000  # of a parser's row; an object of n optional properties takes 4 n
MAX_STEP_ITEMS = 50_000  # of one mask
MAX_STATES = 100_000  # of a lexer, with about 300 bytes each
MOST_TOKENS = 2**18  # of a vocabulary
FUEL = 200_000  # of a lexer for its expressions; a million take 1.7 seconds and 160 MB
WORDS = {  # llguidance's, where they name its own options
    "<non-verbose/>": "",
    "recursion limit exceeded": "it is nested too deeply,",
    "NoExtensionBias": "no text goes on to what it asks for",
    "Unimplemented keys": "Keywords that cannot be enforced",
    "oneOf constraints are not supported. "
    "Enable 'coerce_one_of' option to approximate oneOf with anyOf":
    "oneOf cannot be enforced unless it is plain that no two branches can match",
}  # fmt: skip
# JSON has these only as \u, which JSON_OPTIONS do without.
_CONTROL = re.compile(r"(?<!\\)(?:\\\\)*(\\u00[01][0-9a-f])")
_SPECIAL = re.compile(r"<[^<>\s\[\]]{1,200}>")  # a token in a Lark grammar
NAMES = {"json_schema": "JSON schema", "regex": "regex", "gbnf": "grammar", "lark": "Lark grammar"}


def limits() -> LLParserLimits:
    return LLParserLimits(
        max_items_in_row=MAX_ITEMS,
        step_max_items=MAX_STEP_ITEMS,
        max_lexer_states=MAX_STATES,
        initial_lexer_fuel=FUEL,
        verbose_errors=False,
    )


def converted(kind: Kind, text: str) -> str:
    """llguidance's own form of the grammar; RequestError if it is too long or no such grammar."""
    most = MAX_GBNF_TEXT if kind == "gbnf" else MAX_TEXT
    if len(text) > most:
        raise refused(kind, f"it has {len(text)} characters, at most {most} are taken")
    n_rules = text.count("::=") if kind == "gbnf" else 0
    if n_rules > MAX_GBNF_RULES:
        raise refused(kind, f"it has {n_rules} rules, at most {MAX_GBNF_RULES} are taken")
    try:
        if kind == "json_schema":
            options = cast("JsonCompileOptions", JSON_OPTIONS)
            return LLMatcher.grammar_from_json_schema(_schema(text), overrides=options)
        return grammar_from(kind, text)
    except (ValueError, RecursionError) as error:
        raise refused(kind, str(error)) from None


def compilable(kind: Kind, text: str) -> str:
    """The grammar's own form, after it has been compiled once, over a small vocabulary.
    RequestError for one that is malformed, too large, or asks for what cannot be enforced."""
    grammar = converted(kind, text)
    n_tokens = MOST_TOKENS if "<[" in grammar else 0  # it names tokens by their numbers
    tokenizer = LLTokenizer(TokenizerWrapper(_Bytes(_SPECIAL.findall(grammar), n_tokens)))
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=limits())
    if matcher.is_error():
        raise refused(kind, matcher.get_error())
    return grammar


class _Bytes:
    """A vocabulary of all bytes, and of whatever else a grammar calls a token."""

    bos_token_id, eos_token_id = None, 256

    def __init__(self, special: Iterable[str], n_tokens: int) -> None:
        named = [text.encode() for text in sorted(set(special))]
        self.tokens = [*(bytes([i]) for i in range(256)), b"</s>", *named]
        self.special_token_ids = list(range(256, len(self.tokens)))
        self.tokens += [b""] * (n_tokens - len(self.tokens))

    def __call__(self, text: str) -> list[int]:
        return list(text.encode())


def fault_of(schema: str) -> str | None:
    """Why this schema, as JSON and with its options, cannot be compiled; None if it can."""
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema)
        reason = LLMatcher.validate_grammar(grammar, limits=limits())
    except (ValueError, RecursionError) as error:
        reason = str(error)
    return worded(reason) if reason else None


def worded(reason: str) -> str:
    """llguidance's message in words of this program."""
    for theirs, ours in WORDS.items():
        reason = reason.replace(theirs, ours)
    return reason.strip()


def refused(kind: Kind, reason: str) -> RequestError:
    return RequestError(f"invalid {NAMES[kind]}: {worded(reason)}")


def _number(text: str) -> int | float:
    """Limits such as 2.0 are integers to JSON Schema."""
    number = float(text)
    return int(number) if number.is_integer() and abs(number) < 2**53 else number


def _schema(text: str) -> dict[str, Any]:
    schema = json.loads(text, parse_float=_number)
    if schema is True:
        return {}
    if not isinstance(schema, Mapping):
        raise ValueError(f"a schema is an object or true, not {json.dumps(schema):.80}")
    found = _CONTROL.search(json.dumps(schema, ensure_ascii=False))
    if found:
        raise ValueError(f"text with the control character {found[1]} cannot be enforced")
    return dict(schema)
