"""From a request's tokens to the text that may be sent: whole characters, no stop strings.

Text that could begin a stop string is held back until that is decided, and the tokens that
made it wait with it, so that those of a stop string never leave. Generation ends where the
first stop string is complete (of two that end there, the longer), however the text falls
into tokens. Nothing here knows how tokens are chosen or where deltas go.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Collection, Iterable
from typing import Literal, NamedTuple, Protocol

from gguf_serve.engine.request import Delta, Request, TokenScore
from gguf_serve.engine.sampling_params import NO_RULES, TokenRules


class Decoder(Protocol):
    """Tokens to text, one by one; a tokenizer's ``decoder``."""

    def push(self, token: int, /) -> str:
        """The whole characters that the token completes; "" while one is incomplete."""

    def flush(self) -> str:
        """What is left, its incomplete characters replaced."""


class _Waiting(NamedTuple):
    token: int
    score: TokenScore | None
    start: int  # where in the whole text its own begins


class Output:
    """The text of one completion, token by token.

    ``rules`` say which tokens end it beside ``eog_ids``, and from where on. ``reason`` is None
    until the tokens themselves end it: "eos", "word", this with ``stopping_word``, or "limit" for a
    line with less than ``min_indent`` spaces before it. With ``includes_stop`` the stop string, or
    the token of the rules, that ended it stays in the text; an end-of-generation token is counted
    and scored among the tokens but has no text.
    """

    def __init__(
        self,
        decoder: Decoder,
        *,
        stop: Iterable[str] = (),
        eog_ids: Collection[int] = (),
        min_indent: int = 0,
        rules: TokenRules = NO_RULES,
        includes_stop: bool = False,
    ) -> None:
        self._decoder = decoder
        self._stop = tuple(word for word in stop if word)
        self._end_ids = rules.stop_ids.union(eog_ids)
        self._shown_ends = rules.stop_ids if includes_stop else frozenset[int]()
        self._includes_stop = includes_stop
        self._n_unstopped = rules.min_tokens  # tokens to come in which no stop string counts
        self._dedent = dedent_pattern(min_indent) if min_indent > 0 else None
        self._holds_nothing = not self._stop and self._dedent is None
        self._held = ""  # decoded, not sent; no stop string in it
        self._n_sent = 0  # characters
        self._waiting: deque[_Waiting] = deque()
        self._finished = False
        self.reason: Literal["eos", "word", "limit"] | None = None
        self.stopping_word = ""

    def push(self, token: int, score: TokenScore | None = None) -> Delta | None:
        """Add a token; what can be sent now, or None. Raises ValueError after the end."""
        if self._finished:
            raise ValueError(f"token {token} comes after the end of the output")
        is_end = token in self._end_ids
        text = "" if is_end and token not in self._shown_ends else self._decoder.push(token)
        may_stop = self._n_unstopped <= 0
        self._n_unstopped -= 1
        if text and self._holds_nothing and not self._waiting and not is_end:
            self._n_sent += len(text)
            return Delta(text, (token,), () if score is None else (score,))
        self._waiting.append(_Waiting(token, score, self._n_sent + len(self._held)))
        self._held += text
        if is_end:
            self.reason = "eos"
            return self.finish()
        if not text:
            return None
        if not may_stop:
            return self._send(len(self._held), all_tokens=False)
        if self._cut_at_stop() or self._cut_at_dedent():
            return self._send(len(self._held), all_tokens=False)
        return self._send(len(self._held) - self._n_undecided(), all_tokens=False)

    def finish(self) -> Delta | None:
        """End the output, by a limit for example: what was held back, or None."""
        if self._finished:
            return None
        self._finished = True
        self._held += self._decoder.flush()
        stopped = self._cut_at_stop()
        return self._send(len(self._held), all_tokens=not stopped)

    def resume(self, tokens: Iterable[int], n_characters: int) -> str:
        """Go on after tokens that have been delivered, with so many characters; their text.

        Nothing of them is sent again. Raises ValueError for tokens after the end, and for another
        number of characters than they can have.
        """
        text = "".join(delta.text for token in tokens if (delta := self.push(token)))
        self._waiting.clear()
        # What a later token has decided is no stop string was delivered, too.
        n_more = n_characters - self._n_sent
        if not 0 <= n_more <= len(self._held):
            raise ValueError(
                f"{n_characters} characters were delivered, but these tokens have from "
                f"{self._n_sent} to {self._n_sent + len(self._held)}"
            )
        text, self._held = text + self._held[:n_more], self._held[n_more:]
        self._n_sent += n_more
        return text

    def _cut_at_stop(self) -> bool:
        """Whether a stop string is complete; then drop what follows, and it if it is not wanted.

        The tokens of what is dropped stay waiting, and so never leave.
        """
        first: tuple[int, int, str] | None = None  # end, start, word
        for word in self._stop:
            start = self._held.find(word)
            if start >= 0 and (first is None or (start + len(word), start) < first[:2]):
                first = (start + len(word), start, word)
        if first is None:
            return False
        self._held = self._held[: first[0] if self._includes_stop else first[1]]
        self.reason, self.stopping_word = "word", first[2]
        self._finished = True
        return True

    def _cut_at_dedent(self) -> bool:
        """Whether a line is indented too little; then drop it, with the line's beginning."""
        found = self._dedent.search(self._held) if self._dedent is not None else None
        if found is None or found["text"] is None:
            return False
        self._held = self._held[: found.start()]
        self.reason = "limit"
        self._finished = True
        return True

    def _n_undecided(self) -> int:
        """The length of the longest end of the text that a stop string begins with."""
        held = self._held
        longest = 0
        if self._dedent is not None and (line := self._dedent.search(held)):
            longest = len(held) - line.start()
        for word in self._stop:
            # The first place from which the rest fits: the earliest is the longest.
            start = held.find(word[0], max(len(held) - len(word) + 1, 0))
            while 0 <= start < len(held) - longest:
                if word.startswith(held[start:]):
                    longest = len(held) - start
                start = held.find(word[0], start + 1)
        return longest

    def _send(self, n: int, *, all_tokens: bool) -> Delta | None:
        """The first n characters held, with the tokens whose text begins in them."""
        text, self._held = self._held[:n], self._held[n:]
        self._n_sent += n
        waiting = self._waiting
        tokens: list[int] = []
        scores: list[TokenScore] = []
        while waiting and (all_tokens or waiting[0].start < self._n_sent):
            token, score, _ = waiting.popleft()
            tokens.append(token)
            if score is not None:
                scores.append(score)
        return Delta(text, tuple(tokens), tuple(scores)) if text or tokens else None


class Vocabulary(Protocol):
    """What of a tokenizer an output needs."""

    @property
    def eog_ids(self) -> Collection[int]: ...
    def decoder(self, special: bool, shown: Collection[int], /) -> Decoder: ...


def output_of(request: Request, tokenizer: Vocabulary) -> Output:
    """The output that a request asks for."""
    return Output(
        tokenizer.decoder(request.special, request.shown), stop=request.stop,
        eog_ids=tokenizer.eog_ids, min_indent=request.min_indent,
        rules=request.rules, includes_stop=request.includes_stop,
    )  # fmt: skip


def dedent_pattern(min_indent: int) -> re.Pattern[str]:
    """A new line with too few spaces before its text, or so far none of it."""
    return re.compile(rf"\n[ \t]{{0,{min_indent - 1}}}(?:(?P<text>[^ \t\n])|\Z)")
