"""ngram-mod: a table that all requests share, of what followed the last tokens.

llama-server's (pull request 19164 there): an entry is a token, found by a hash of the n tokens
before it and nothing else, so that a guess may be of another n-gram. It is verified like any.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from copy import copy

import numpy as np

from gguf_serve.engine.speculation.ngram_index import RollingHash
from gguf_serve.engine.speculation_options import NGramModSizes

ENTRIES = 1 << 22  # of 4 bytes
MOST_TABLES = 4
FULL = 0.25  # of the entries in use, beyond which the table is emptied
LOW, MOST_LOW = 0.25, 5  # a share of right tokens that so many guesses in turn may have


class NGramTable:
    """Of the requests with one ``salt``: what may share cached prefixes may share guesses."""

    def __init__(self) -> None:
        self._next = np.full(ENTRIES, -1, np.int32)
        self._n_used = 0

    def add(self, key: int, token: int) -> None:
        at = key % ENTRIES
        if self._next[at] < 0:
            self._n_used += 1
            if self._n_used > FULL * ENTRIES:
                self.clear()
        self._next[at] = token

    def get(self, key: int) -> int:
        """-1: there is none."""
        return int(self._next[key % ENTRIES])

    def clear(self) -> None:
        self._next[:] = -1
        self._n_used = 0


class NGramTables:
    """One for each of the salts that were last used: clients may name any number of them."""

    def __init__(self) -> None:
        self._tables: OrderedDict[Hashable, NGramTable] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, salt: Hashable) -> NGramTable:
        """From any thread."""
        with self._lock:
            table = self._tables.pop(salt, None) or NGramTable()
            self._tables[salt] = table
            if len(self._tables) > MOST_TABLES:
                self._tables.popitem(last=False)
            return table


class NGramMod:
    """One request's way through the table: at least n_min tokens in a row, at most n_max."""

    kind, trust = "ngram-mod", 0.7

    def __init__(self, sizes: NGramModSizes, table: NGramTable, prompt: Sequence[int]) -> None:
        self._sizes, self._table = sizes, table
        self._hash = RollingHash(sizes.n_match)
        self._n_low = 0
        self._learn(prompt)

    def _learn(self, tokens: Sequence[int]) -> None:
        for i in range(self._hash.n_seen, len(tokens)):
            if i >= self._sizes.n_match:
                self._table.add(self._hash.value, tokens[i])
            self._hash.push(tokens, i)

    def propose(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        n = self._sizes.n_match
        self._learn(tokens)
        if len(tokens) < n:
            return ()
        found, after = list(tokens[-n:]), copy(self._hash)
        while len(found) < n + self._sizes.n_max:
            token = self._table.get(after.value)
            if token < 0:
                break
            found.append(token)
            after.push(found, len(found) - 1)
        return found[n:] if len(found) - n >= max(self._sizes.n_min, 1) else ()

    def judge(self, n_right: int, n_guessed: int) -> None:
        self._n_low = self._n_low + 1 if n_right < LOW * n_guessed else 0
        if self._n_low >= MOST_LOW:
            self._table.clear()
            self._n_low = 0
