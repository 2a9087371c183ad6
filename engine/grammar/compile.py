"""Compiling constraints to matchers over a model's own vocabulary, with llguidance.

A grammar is tried in a child process (trial.py), then compiled in the caller's thread,
without the interpreter's lock, and kept. Nothing here knows of requests or of sampling.
"""

from __future__ import annotations

import threading
from collections.abc import Collection
from functools import cached_property
from typing import Protocol

from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.grammar import trial as grammar_trial
from gguf_serve.engine.grammar.constraint import Constraint, Kind, Trigger
from gguf_serve.engine.grammar.mask_threads import MaskThreads
from gguf_serve.engine.grammar.source import limits, refused
from gguf_serve.engine.held import Budget, ByteCache

__all__ = ["Compiled", "Constraint", "Grammars", "Trigger"]

MAX_BYTES = 256 << 20  # of all grammars and vocabularies that requests have or that are kept
CACHED_BYTES = 96 << 20  # of grammars that are kept
CACHED_VOCABULARY_BYTES = 128 << 20
TOKEN_BYTES = 320  # of a vocabulary; 15 MB for 49,152 tokens
MARK = "\x02"  # a character that merges with no other


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


class _Tokenizer:
    """llguidance's form of a vocabulary."""

    def __init__(self, vocabulary: Vocabulary, n_vocab: int, preserved: frozenset[str]) -> None:
        if not vocabulary.eog_ids:
            raise RequestError("a grammar needs a tokenizer with a token that ends generation")
        wrapped = TokenizerWrapper(_Tokens(vocabulary, n_vocab, preserved))
        self.tokenizer = LLTokenizer(wrapped, eos_token=sorted(vocabulary.eog_ids))


class Compiled:
    """A grammar over a vocabulary; its bytes count while anybody has it."""

    def __init__(self, prototype: LLMatcher, vocabulary: _Tokenizer) -> None:
        self._prototype, self._vocabulary = prototype, vocabulary

    @property
    def tokenizer(self) -> LLTokenizer:
        return self._vocabulary.tokenizer

    def matcher(self) -> LLMatcher:
        """A fresh matcher at the grammar's beginning. All of them share a lexer, which grows with
        what they meet, and stays at its limits once it has reached them."""
        return self._prototype.deep_copy()


_Key = tuple[Kind, str, frozenset[str]]


class Grammars:
    """Compiles the constraints of one model's requests. May be called from any thread."""

    def __init__(self, vocabulary: Vocabulary, n_vocab: int) -> None:
        self.vocabulary = vocabulary
        self.n_vocab = n_vocab  # logits in a row; may be more than there are tokens
        self.threads = MaskThreads()
        self._limits = limits()
        self._lock = threading.Lock()
        self._budget = Budget(MAX_BYTES)
        self._tokenizers = ByteCache[frozenset[str], _Tokenizer](CACHED_VOCABULARY_BYTES)
        self._grammars = ByteCache[_Key, Compiled](CACHED_BYTES)

    def compiled(self, constraint: Constraint) -> Compiled:
        """The grammar of a constraint.

        Raises RequestError for one that is malformed, takes too much time or memory, or asks
        for what cannot be enforced.
        """
        key = self._key(constraint)
        return self._grammars.get(key) or self._compile(*key)

    def matcher(self, constraint: Constraint) -> LLMatcher:
        """A fresh matcher at the beginning of a constraint's grammar; raises as ``compiled``."""
        return self.compiled(constraint).matcher()

    def forget(self, constraint: Constraint) -> None:
        """Compile anew the next time: what shares a lexer that has grown shares its limits."""
        self._grammars.remove(self._key(constraint))

    def tokenizer(self, constraint: Constraint) -> LLTokenizer:
        return self._tokenizer(self._key(constraint)[2]).tokenizer

    def _key(self, constraint: Constraint) -> _Key:
        return constraint.kind, constraint.text, self._controls.intersection(constraint.preserved)

    @cached_property
    def _controls(self) -> frozenset[str]:
        """The texts of control tokens; preserving any others changes nothing."""
        vocabulary = self.vocabulary
        ids = filter(vocabulary.is_special, range(vocabulary.n_vocab))
        return frozenset(vocabulary.piece(i).decode(errors="replace") for i in ids)

    def _tokenizer(self, preserved: frozenset[str]) -> _Tokenizer:
        with self._lock:  # one of 150,000 tokens takes half a second: not twice at a time
            found = self._tokenizers.get(preserved)
            if found is None:
                found = _Tokenizer(self.vocabulary, self.n_vocab, preserved)
                n_bytes = TOKEN_BYTES * self.n_vocab
                self._claim(found, n_bytes)
                self._tokenizers.put(preserved, found, n_bytes)
            return found

    def _compile(self, kind: Kind, text: str, preserved: frozenset[str]) -> Compiled:
        tokenizer = self._tokenizer(preserved)
        tried = grammar_trial.tried(kind, text)
        matcher = LLMatcher(tokenizer.tokenizer, tried.grammar, log_level=0, limits=self._limits)
        if matcher.is_error():
            raise refused(kind, matcher.get_error())
        compiled = Compiled(matcher, tokenizer)
        self._claim(compiled, tried.n_bytes)
        self._grammars.put((kind, text, preserved), compiled, tried.n_bytes)
        return compiled

    def _claim(self, owner: object, n_bytes: int) -> None:
        def make_room() -> bool:
            return self._grammars.drop() or self._tokenizers.drop()

        if not self._budget.claim(owner, n_bytes, make_room):
            raise RequestError(
                f"the grammars of all requests take {self._budget.n_bytes >> 20} MiB, this one "
                f"{n_bytes >> 20} MiB more, and at most {MAX_BYTES >> 20} MiB are there for them: "
                "wait for others to end"
            )
