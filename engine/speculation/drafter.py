"""What guesses the next tokens of a request: the interface, and two that need no search."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from gguf_serve.engine.grammar.guide import Guide
from gguf_serve.engine.speculation.ngram_index import NGramIndex


class Drafter(Protocol):
    """Guesses for one request. Guesses cost time if they are wrong, and change nothing else.

    ``tokens`` are always the same growing list: the request's prompt, and what it has generated.
    """

    @property
    def kind(self) -> str:
        """Its name among the types of --spec-type."""
        ...

    @property
    def trust(self) -> float:
        """How likely one of its tokens is right, before any has been seen to be: 0 to 1."""
        ...

    def propose(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        """At most so many tokens that may follow; none where it has no idea."""
        ...

    def judge(self, n_right: int, n_guessed: int) -> None:
        """Learn how many of the tokens last proposed have come."""
        ...


class Forced:
    """The tokens that a grammar leaves no choice of, as the tokenizer itself would write them, and
    between them those of which it leaves little, as they have come before."""

    kind, trust = "grammar", 0.9

    def __init__(self, guide: Guide) -> None:
        self._guide = guide

    def propose(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        return self._guide.foreseen[:most]

    def judge(self, n_right: int, n_guessed: int) -> None:
        pass


class Prediction:
    """A text that the client expects, followed for as long as it is what comes.

    After another token it is looked for where the last tokens stand in it: ahead first, since an
    edit mostly leaves something out or puts something in.
    """

    kind, trust = "prediction", 0.8
    _RESUMES_AFTER = 3  # tokens that agree

    def __init__(self, expected: Sequence[int], n_prompt: int) -> None:
        self._expected, self._n_seen = expected, n_prompt
        self._at: int | None = 0  # of the token expected next
        self._followed = 0  # of the last one that was
        self._places = NGramIndex(self._RESUMES_AFTER)
        self._places.extend(expected)

    def propose(self, tokens: Sequence[int], most: int) -> Sequence[int]:
        for i in range(self._n_seen, len(tokens)):
            at = self._at
            if at is not None and at < len(self._expected) and self._expected[at] == tokens[i]:
                self._at = self._followed = at + 1
            else:
                self._at = self._find(tokens, i + 1)
        self._n_seen = len(tokens)
        return [] if self._at is None else self._expected[self._at : self._at + most]

    def _find(self, tokens: Sequence[int], end: int) -> int | None:
        last = tokens[max(end - self._RESUMES_AFTER, 0) : end]
        found = list(self._places.places(self._expected, last))
        ahead = [at for at in found if at >= self._followed]
        self._followed = min(ahead or found, default=self._followed)
        return self._followed if found else None

    def judge(self, n_right: int, n_guessed: int) -> None:
        pass
