"""Compiling constraints to matchers over a model's own vocabulary, with llguidance.

Compilation may take seconds for a huge grammar: it happens in the caller's thread, without
the interpreter's lock, and is cached. Nothing here knows of requests or of sampling.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Collection, Mapping
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any, Protocol, cast

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper, grammar_from

from engine.constraint import JSON_OPTIONS, Constraint, Kind, Trigger
from engine.errors import RequestError

if TYPE_CHECKING:
    from llguidance._lib import JsonCompileOptions

__all__ = ["Constraint", "Grammars", "Trigger"]

MAX_TEXT = 2**20  # characters; a schema of so many takes about a second
# Converting GBNF takes the square of its rules in the worst case: 2 seconds for so many.
MAX_GBNF_TEXT, MAX_GBNF_RULES = 2**16, 1000
MAX_ITEMS = 20_000  # of a parser's row; an object of n optional properties takes 4 n
MAX_STATES = 100_000  # of a lexer, with about 300 bytes each
CACHED_GRAMMARS = 32
CACHED_VOCABULARIES = 4
CACHED_FAULTS = 4096  # schemas and their parts, ...
CACHED_TEXT = 2**14  # ... of no more characters: 64 MiB in all
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
MARK = "\x02"  # a character that merges with no other
NAMES = {"json_schema": "JSON schema", "regex": "regex", "gbnf": "grammar", "lark": "Lark grammar"}


class Vocabulary(Protocol):
    """What of a tokenizer a grammar needs."""

    @property
    def n_vocab(self) -> int: ...
    @property
    def eog_ids(self) -> Collection[int]: ...
    def is_special(self, id: int, /) -> bool: ...
    def piece(self, id: int, /) -> bytes: ...
    def encode(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]: ...


class _Tokens:
    """A vocabulary as llguidance wants it: texts, which tokens have none, and an encoder.

    The encoder serves where a grammar leaves no choice of text: the tokens that the model
    itself would be given for it are the ones allowed.
    """

    bos_token_id = None

    def __init__(self, vocabulary: Vocabulary, n_vocab: int, preserved: Collection[str]) -> None:
        self._encode, self._parse_special = vocabulary.encode, bool(preserved)
        kept = {text.encode() for text in preserved}
        ids = range(vocabulary.n_vocab)
        self.tokens = [vocabulary.piece(i) for i in ids]
        self.special_token_ids = [
            i
            for i in ids
            if i in vocabulary.eog_ids or (vocabulary.is_special(i) and self.tokens[i] not in kept)
        ]
        self.tokens += [b""] * (n_vocab - len(self.tokens))  # no text: never allowed
        self.eos_token_id = min(vocabulary.eog_ids)
        # What some encoders put before a text does not belong into the middle of one.
        self._adds_space = self._bytes(self._plain("a")) != b"a"

    def __call__(self, text: str) -> list[int]:
        if not self._adds_space:
            return self._plain(text)
        ids = self._plain(MARK + text)
        ends = (n for n in range(len(ids)) if self._bytes(ids[:n]).endswith(MARK.encode()))
        return ids[next(ends, 0) :]

    def _plain(self, text: str) -> list[int]:
        return self._encode(text, add_special=False, parse_special=self._parse_special)

    def _bytes(self, ids: list[int]) -> bytes:
        return b"".join(self.tokens[i] for i in ids)


class Grammars:
    """Compiles the constraints of one model's requests. May be called from any thread."""

    def __init__(self, vocabulary: Vocabulary, n_vocab: int) -> None:
        self.vocabulary = vocabulary
        self.n_vocab = n_vocab  # logits in a row; may be more than there are tokens
        self._limits = LLParserLimits(
            max_items_in_row=MAX_ITEMS, max_lexer_states=MAX_STATES, verbose_errors=False
        )
        self._lock = threading.Lock()
        self._tokenizer = lru_cache(CACHED_VOCABULARIES)(self._new_tokenizer)
        self._compiled = lru_cache(CACHED_GRAMMARS)(self._compile)

    def matcher(self, constraint: Constraint) -> LLMatcher:
        """A fresh matcher at the grammar's beginning.

        Raises RequestError for a grammar that is malformed, too large, or asks for what
        cannot be enforced.
        """
        return self._compiled(constraint.kind, constraint.text, constraint.preserved).deep_copy()

    def forget(self) -> None:
        """Compile anew from now on: matchers of one grammar share a lexer, which stays at its
        limits once it has reached them."""
        self._compiled.cache_clear()

    def tokenizer(self, constraint: Constraint) -> LLTokenizer:
        with self._lock:  # one of 150,000 tokens takes half a second: not twice at a time
            return self._tokenizer(self._controls.intersection(constraint.preserved))

    @cached_property
    def _controls(self) -> frozenset[str]:
        """The texts of control tokens; preserving any others changes nothing."""
        vocabulary = self.vocabulary
        ids = filter(vocabulary.is_special, range(vocabulary.n_vocab))
        return frozenset(vocabulary.piece(i).decode(errors="replace") for i in ids)

    def _new_tokenizer(self, preserved: frozenset[str]) -> LLTokenizer:
        if not self.vocabulary.eog_ids:
            raise RequestError("a grammar needs a tokenizer with a token that ends generation")
        wrapped = TokenizerWrapper(_Tokens(self.vocabulary, self.n_vocab, preserved))
        return LLTokenizer(wrapped, eos_token=sorted(self.vocabulary.eog_ids))

    def _compile(self, kind: Kind, text: str, preserved: tuple[str, ...]) -> LLMatcher:
        grammar = _grammar(kind, text)
        tokenizer = self.tokenizer(Constraint(kind, text, preserved=preserved))
        matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise _refused(kind, matcher.get_error())
        return matcher


def schema_fault(schema: str) -> str | None:
    """Why this schema, as JSON and with its options, cannot be compiled; None if it can."""
    return (_cached_fault if len(schema) <= CACHED_TEXT else _fault)(schema)


def _fault(schema: str) -> str | None:
    try:
        grammar = LLMatcher.grammar_from_json_schema(schema)
        reason = LLMatcher.validate_grammar(grammar)
    except (ValueError, RecursionError) as error:
        reason = str(error)
    return worded(reason) if reason else None


_cached_fault = lru_cache(CACHED_FAULTS)(_fault)


def worded(reason: str) -> str:
    """llguidance's message in words of this program."""
    for theirs, ours in WORDS.items():
        reason = reason.replace(theirs, ours)
    return reason.strip()


def _refused(kind: Kind, reason: str) -> RequestError:
    return RequestError(f"invalid {NAMES[kind]}: {worded(reason)}")


def _grammar(kind: Kind, text: str) -> str:
    """llguidance's own form of the grammar."""
    most = MAX_GBNF_TEXT if kind == "gbnf" else MAX_TEXT
    if len(text) > most:
        raise _refused(kind, f"it has {len(text)} characters, at most {most} are taken")
    n_rules = text.count("::=") if kind == "gbnf" else 0
    if n_rules > MAX_GBNF_RULES:
        raise _refused(kind, f"it has {n_rules} rules, at most {MAX_GBNF_RULES} are taken")
    try:
        if kind == "json_schema":
            options = cast("JsonCompileOptions", JSON_OPTIONS)
            return LLMatcher.grammar_from_json_schema(_schema(text), overrides=options)
        return grammar_from(kind, text)
    except (ValueError, RecursionError) as error:
        raise _refused(kind, str(error)) from None


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
