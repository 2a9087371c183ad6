"""A long text in windows: how much of one can be cut into words before what follows is seen.

The library that cuts and merges needs up to 500 bytes and 4 microseconds for each token of what
it is given, so that a text of 20 MB must not be given to it at once. A window's words are those
of the whole text as long as no pattern that made them has looked beyond the window's end. The
patterns of pretokenizers.py look beyond the end of a match for a few characters only, but for
runs: white space is cut by what follows it, and letters by the case of those after them.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterator, Sequence

from gguf_serve.engine.errors import RequestError

WINDOW = 2**15  # characters; 20 milliseconds
# A word is merged as a whole, with 400 bytes for each character.
MAX_WORD = 2**18  # characters
_MARGIN = 8  # characters: a contraction, a group of digits, a mark of two characters

# Kinds of character: letters and marks, numbers, white space, others.
DEFAULT_RUNS = ("L", "Z")


def settled(window: str, runs: Sequence[str] = DEFAULT_RUNS) -> int:
    """Up to where the words of a window are those of any text that goes on after it.

    ``runs``: kinds of character, each string those that make one run, inside of which what
    follows the run decides.
    """
    at = len(window) - _MARGIN
    run = ""
    while at > 0:
        kind = _kind(window[at - 1])
        if kind and not run:
            run = next((kinds for kinds in runs if kind in kinds), "")
            if not run:
                return at
        elif kind and kind not in run:
            return at - 1  # whether a word ends where the run begins is decided then, too
        at -= 1
    return 0


def windows(
    text: str, encode_until: Callable[[str, int], tuple[list[int], int]],
    encode: Callable[[str], list[int]], runs: Sequence[str] = DEFAULT_RUNS,
) -> Iterator[list[int]]:  # fmt: skip
    """The ids of a text, window by window, as ``encode`` gives them for the whole.

    ``encode_until`` gives the ids of the words that begin before a place, the last of which may
    be cut off and is left out, and where that begins. RequestError for a word that is too long.
    """
    at, size = 0, WINDOW
    while len(text) - at > size:
        window = text[at : at + size]
        ids, end = encode_until(window, settled(window, runs))
        if end:
            yield ids
            at, size = at + end, WINDOW
        elif size >= MAX_WORD:
            raise too_long_word()
        else:
            size *= 2
    yield encode(text[at:])


def pieces(text: str, boundary: Callable[[str, int, int], int | None]) -> Iterator[str]:
    """A text in pieces of about a window, each of which ends where ``boundary`` finds an end of
    a word at or after one place and before another. RequestError for a word that is too long."""
    at = 0
    while len(text) - at > WINDOW:
        found = boundary(text, at + WINDOW, at + WINDOW + MAX_WORD)
        if found is None and len(text) - at > WINDOW + MAX_WORD:
            raise too_long_word()
        end = len(text) if found is None else found
        yield text[at:end]
        at = end
    if at < len(text):
        yield text[at:]


def too_long_word() -> RequestError:
    return RequestError(
        f"the text has a run of more than {MAX_WORD} characters that is one word to the tokenizer"
    )


def _kind(character: str) -> str:
    """L, N, Z, O, or "" for what some patterns see as one kind and some as another: control
    characters, and those that Unicode has not assigned yet."""
    category = unicodedata.category(character)[0]
    if category == "C":
        return "Z" if character in "\t\n\v\f\r\x85" else ""
    if category in "LM":
        return "L"
    return category if category in "NZ" else "O"
