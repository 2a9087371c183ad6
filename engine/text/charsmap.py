"""SentencePiece's precompiled character map: the normalization rules of a Unigram model.

The file holds a double array trie, laid out as Darts-clone's: a 32-bit node has its label in
bits 0-7, whether a value follows in bit 8, and the distance to its children in bits 10-30,
times 256 if bit 9 is set; bit 31 marks a value, the offset of a NUL-terminated replacement
(https://github.com/google/sentencepiece/blob/master/src/normalizer.cc,
https://github.com/s-yata/darts-clone/blob/master/include/darts.h).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.errors import ModelError

_VALUE = 1 << 31
_LABEL = _VALUE | 0xFF
PART = 2**14  # characters that are replaced in one go


class CharsMap:
    """The rules of a map. ModelError where it is malformed."""

    def __init__(self, blob: bytes) -> None:
        size = int.from_bytes(blob[:4], "little")
        if size % 4 or not 0 < size < len(blob) - 4:
            raise ModelError(
                f"precompiled_charsmap has {len(blob)} bytes, of which its trie would take {size}: "
                "expected a multiple of 4, and replacements after it"
            )
        self._nodes = np.frombuffer(blob, dtype="<u4", count=size // 4, offset=4)
        self._node_list = self._nodes.tolist()
        self._replacements = blob[4 + size :]

    def longest(self, text: bytes) -> tuple[int, str] | None:
        """The longest rule that ``text`` (UTF-8) begins with: its bytes, its replacement."""
        nodes = self._node_list
        at = int(_children(nodes[0]))
        found = None
        for length, label in enumerate(text, 1):
            at ^= label
            if not label or at >= len(nodes) or nodes[at] & _LABEL != label:
                break
            node = nodes[at]
            at ^= _children(node)
            if node & 0x100:
                found = length, at
        return found and (found[0], self._replacement(found[1]))

    def characters(self) -> tuple[dict[int, str], set[str]]:
        """Rules for single characters, by code point; second characters of longer rules."""
        singles: dict[int, str] = {}
        seconds: set[str] = set()
        # Frontier of a breadth-first search, until two characters are complete.
        keys = [b""]
        bases = _children(self._nodes[:1])
        while keys:
            keys, bases, values = self._extended(keys, bases)
            complete = [key.decode(errors="ignore") for key in keys]
            singles |= {
                ord(text): self._replacement(int(bases[i]))
                for i, text in enumerate(complete)
                if values[i] and len(text) == 1 and len(text.encode()) == len(keys[i])
            }
            seconds |= {text[1] for text in complete if len(text) > 1}
            unfinished = [
                i for i, text in enumerate(complete) if len(text) < 2 and len(keys[i]) < 8
            ]
            keys = [keys[i] for i in unfinished]
            bases = bases[unfinished]
        return singles, seconds

    def _extended(
        self, keys: list[bytes], bases: npt.NDArray[np.uint32]
    ) -> tuple[list[bytes], npt.NDArray[np.uint32], npt.NDArray[np.bool_]]:
        """All keys with one more byte, where their children begin, and whether they are rules."""
        labels = np.arange(1, 256, dtype=np.uint32)
        at = bases[:, None] ^ labels  # (n_keys, 255): where the child with each label would be
        inside = at < len(self._nodes)
        node = self._nodes[np.where(inside, at, 0)]
        parent, child = np.nonzero(inside & (node & _LABEL == labels))
        node, at = node[parent, child], at[parent, child]
        pairs = zip(parent.tolist(), child.tolist(), strict=True)
        keys = [keys[p] + bytes([c + 1]) for p, c in pairs]
        return keys, at ^ _children(node), (node & 0x100) != 0

    def _replacement(self, at: int) -> str:
        offset = self._node_list[at] & ~_VALUE if at < len(self._node_list) else -1
        end = self._replacements.find(b"\0", offset) if offset >= 0 else -1
        if end < 0:
            raise ModelError(f"precompiled_charsmap: no replacement behind node {at}")
        return self._replacements[offset:end].decode(errors="replace")


def _children(node: Any) -> Any:
    """The distance from a node, or from each of an array of nodes, to its children."""
    return (node >> 10) << ((node & 0x200) >> 6)


def normalizer(
    charsmap: CharsMap | None, verbatim: Iterable[str]
) -> Callable[[str], Iterator[str]]:
    """Replacement of the longest rule at each position, from left to right; in parts.

    A text that begins like one of ``verbatim`` (user-defined tokens) stays as it is for as
    long as it does.
    """
    table, seconds = charsmap.characters() if charsmap else ({}, set())
    kept = {token[:length] for token in verbatim for length in range(1, len(token) + 1)}
    tricky = _tricky_pattern(seconds, kept)

    def step(text: str, at: int) -> tuple[str, int]:
        end = at
        while end < len(text) and text[at : end + 1] in kept:
            end += 1
        if end > at:
            return text[at:end], end
        # No rule is longer than this, and a few bytes are cheap to encode.
        found = charsmap.longest(text[at : at + 32].encode()) if charsmap else None
        if found is None:
            return text[at], at + 1
        length, replacement = found
        return replacement, at + len(text[at : at + 32].encode()[:length].decode())

    def normalize(text: str) -> Iterator[str]:
        done = 0
        while done < len(text):
            end = min(done + PART, len(text))
            # One character more, which may be the second of a rule.
            match = tricky.search(text, done, end + 1) if tricky else None
            if match is None:
                yield text[done:end].translate(table)
                done = end
            else:
                part, after = step(text, match.start())
                yield text[done : match.start()].translate(table) + part
                done = after

    return normalize


def _tricky_pattern(seconds: set[str], kept: set[str]) -> re.Pattern[str] | None:
    """Finds the characters that cannot be replaced one by one: those followed by the second
    character of some rule, and those that begin a user-defined token."""
    firsts = {text for text in kept if len(text) == 1}
    alternatives = []
    if seconds:
        alternatives.append(f"(?s:.)(?=[{_escaped(seconds)}])")
    if firsts:
        alternatives.append(f"[{_escaped(firsts)}]")
    return re.compile("|".join(alternatives)) if alternatives else None


def _escaped(characters: set[str]) -> str:
    return "".join(map(re.escape, sorted(characters)))
