"""One request's way through its constraint: which tokens may come next.

While the device computes the logits, another thread computes a bit mask of the allowed tokens
(``begin``), which ``fill`` writes when it is there; then ``accept`` is told which one was chosen.
For the rest a Guide belongs to the engine's thread.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, wait
from typing import Literal

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.grammar.ahead import Ahead, MaskAhead
from gguf_serve.engine.grammar.compile import Grammars
from gguf_serve.engine.grammar.constraint import Constraint, Trigger
from gguf_serve.engine.grammar.habits import Habits, Kind, kind_of
from gguf_serve.engine.grammar.mask_threads import SLOW_SECONDS
from gguf_serve.engine.grammar.source import worded

Ints = npt.NDArray[np.int32]
# Of the processor for the masks of one request: so many seconds, and so many for each token.
FREE_SECONDS, TOKEN_SECONDS = 2.0, 0.01
SPACES = ("\n\n", "\n")  # what models put between their reasoning and the answer


class Guide:
    """Where in its constraint a completion is.

    ``phase``: in "reasoning" and "waiting" (for a trigger) the text is free; "opening" is
    the first token of the answer, where a start tag or white space may come instead; "on":
    the grammar holds. Raises RequestError for a grammar that cannot be compiled.
    """

    def __init__(self, constraint: Constraint, grammars: Grammars) -> None:
        self._grammars, self._vocabulary = grammars, grammars.vocabulary
        self._compiled = grammars.compiled(constraint)
        self._matcher = self._compiled.matcher()
        self._tokenizer = self._compiled.tokenizer
        self._constraint = constraint
        self._triggers = constraint.triggers
        self._words = [_bytes_pattern(t) for t in constraint.triggers if not t.is_pattern]
        self._patterns = [_bytes_pattern(t) for t in constraint.triggers if t.is_pattern]
        start, end = constraint.reasoning or ("", "")
        self._start, self._end = start.encode(), end.encode()
        words = [t.text.encode() for t in constraint.triggers if not t.is_pattern]
        self._longest = max(map(len, [*words, self._start, b"x"]))
        self._text = bytearray(constraint.prefix.encode())  # the free text
        self._from = 0  # where in it the next tag or word may begin
        self._retry = 0  # and where the next match of a pattern may
        self._tokens: list[tuple[int, int]] = []  # (where its text begins, id) of free tokens
        self._tag = self._encode(start)
        self._extra = self._tag[:1]  # tokens that the opening allows besides the grammar's
        self._forced: list[int] = []  # the rest of a start tag of several tokens
        self._error = ""
        self._mask: Ints = np.zeros(-(-grammars.n_vocab // 32), np.int32)
        self._work: Future[None] | None = None  # on the mask; None: nothing has begun
        self._unread: list[int] = []  # tokens that the matcher is still to be told
        self.foresees = False  # somebody guesses, and wants to know masks early
        self._foreseen: list[int] = []  # what somebody who guesses may guess
        self._habits = Habits()
        self._kind: Kind = "free"  # of the next token's mask
        self._n_taken = 0  # tokens since that was computed
        self._ahead = Ahead()
        self._seconds, self._n_accepted, self._is_slow = 0.0, 0, False
        self.phase: Literal["reasoning", "waiting", "opening", "on"] = "on"
        self._enter(reasoning=constraint.reasoning is not None)

    def _encode(self, text: str) -> list[int]:
        encode = self._vocabulary.encode
        return encode(text, add_special=False, parse_special=True) if text else []

    def _enter(self, reasoning: bool) -> None:
        """The first phase, after what the prompt has already begun."""
        if reasoning and not self._start:
            self.phase = "reasoning"
        elif self._triggers:
            self.phase = "waiting"
        elif reasoning:
            opened, closed = self._text.rfind(self._start), self._text.rfind(self._end)
            if opened > closed:
                self.phase, self._from = "reasoning", opened + len(self._start)
            elif closed < 0:
                self.phase = "opening"
        self._scan()

    @property
    def constrains(self) -> bool:
        """Whether the next token needs a mask."""
        return self.phase != "waiting" and not (self._triggers and self.phase == "reasoning")

    def begin(self, when_done: Callable[[], None] | None = None) -> None:
        """Have the next token's mask computed, if a grammar says what is in it, and
        ``when_done`` called in another thread."""
        is_free = self._forced or self.phase == "reasoning" or not self.constrains
        if self._work is None and not is_free:
            self._n_taken = 0
            self._work = self._grammars.threads.run(self._compute, self._is_slow)
        if when_done is not None and self._work is not None:
            self._work.add_done_callback(lambda _: when_done())

    @property
    def is_ready(self) -> bool:
        """Whether ``fill`` need not wait."""
        return self._work is None or self._work.done()

    def fill(self, words: Ints, until: float | None = None) -> bool:
        """Write the allowed tokens' bits: int32 [ceil(n_vocab / 32)], token i in word i / 32.

        False if they are not known at the time ``until`` (of time.perf_counter); None: wait.
        Never raises: a fault shows when the next token is accepted, and ends this request only.
        """
        self.begin()
        if self._work is not None and not self._work.done():
            wait([self._work], None if until is None else max(until - time.perf_counter(), 0.0))
            if not self._work.done():
                return False
        bits = words.view(np.uint32)
        if self._forced:
            words[:] = 0
            _set(bits, self._forced[:1])
        elif self.phase == "reasoning":
            words[:] = -1
            _clear(bits, self._vocabulary.eog_ids)
        else:
            words[:] = self._mask
            if self.phase == "opening":
                _set(bits, self._extra)
        return True

    def _compute(self) -> None:
        """Bring the matcher up to date and compute the mask, in a thread that may take long."""
        begin = time.thread_time()
        tokens, self._unread = self._unread, []
        try:
            if not tokens or self._matcher.consume_tokens(tokens):
                self._matcher.unsafe_compute_mask_ptr(self._mask.ctypes.data, self._mask.nbytes)
        except Exception as error:
            self._error = str(error)
        if self._matcher.is_error():
            self._error = self._matcher.get_error()
        if self._error:
            self._mask[:] = -1
        seconds = time.thread_time() - begin
        self._seconds += seconds
        if self._error or seconds > SLOW_SECONDS:
            self._is_slow = True
            # What shares its lexer shares the limits, and the memory, that it has come to.
            self._grammars.forget(self._constraint)
        elif self.foresees:
            self._kind = kind_of(self._mask)
            self._foreseen = self._habits.foresee(self._matcher, self._kind)
            self.foresees = time.thread_time() - begin < SLOW_SECONDS

    def may_guess(self, seconds: float) -> bool:
        """Whether several tokens' masks can be had at once: not where a tag is being written, of
        a slow grammar, or if the next token's mask is not known after so many seconds."""
        if self.phase == "opening" or self._forced or self._is_slow:
            return False
        self.begin()
        is_known = self._work is None or not wait([self._work], seconds).not_done
        return is_known and not self._error

    @property
    def foreseen(self) -> list[int]:
        """Where ``may_guess`` holds, the next tokens that the grammar leaves no choice of, or
        little, and that have come there before."""
        return self._foreseen if self.phase == "on" else []

    def look_ahead(self, tokens: Sequence[int]) -> None:
        """Have the masks after each of these tokens computed, as ``begin`` does the next one's.
        ``may_guess`` must hold."""
        self._ahead.phase = self.phase
        if self.phase == "on":
            self._ahead.begin(self._grammars.threads, self._matcher, tokens, len(self._mask))

    def mask_after(self, n: int) -> Guide | MaskAhead:
        """The mask after the first ``n`` tokens of those of ``look_ahead``; of 0, the next one."""
        return self if n == 0 or self.phase != "on" else self._ahead.after(n)

    @property
    def goes_as_foreseen(self) -> bool:
        """Whether the masks of ``look_ahead`` still are what counts, if its tokens have come."""
        return self.phase == self._ahead.phase

    def accept(self, token: int) -> None:
        """Take note of the chosen token. RequestError if the grammar cannot go on."""
        self._work = None
        self._n_accepted += 1
        if self._error:
            raise RequestError(f"the grammar has failed: {worded(self._error)}")
        if self._seconds > FREE_SECONDS + TOKEN_SECONDS * self._n_accepted:
            raise RequestError(
                f"the grammar has taken {self._seconds:.1f} seconds for {self._n_accepted} tokens: "
                f"at most {FREE_SECONDS:g}, and {TOKEN_SECONDS:g} for each token, are allowed"
            )
        if token in self._vocabulary.eog_ids:
            return
        if self._forced:
            self._forced.pop(0)
            self.phase = "opening" if self._forced else "reasoning"
        elif self.phase in ("reasoning", "waiting"):
            self._tokens.append((len(self._text), token))
            self._text += self._vocabulary.piece(token)
            self._scan()
        elif self.phase == "opening" and token in self._extra:
            self._open(token)
        else:
            if self.phase == "on" and self.foresees:
                n, self._n_taken = self._n_taken, self._n_taken + 1
                self._habits.note(token, self._ahead.kind(n) if n else self._kind)
            self.phase = "on"
            self._consume([token])

    def _open(self, token: int) -> None:
        """Reasoning begins, or white space comes before the answer: the grammar's if it may."""
        if token in self._tag:
            self._forced = self._tag[1:]
            self.phase = "opening" if self._forced else "reasoning"
            return
        self.phase = "on"
        if self._matcher.validate_tokens([token]):
            self._consume([token])

    def _consume(self, tokens: list[int]) -> None:
        """Tell the matcher, before the next mask: that may take long, too."""
        self._unread += tokens

    def _scan(self) -> None:
        """Go on in the free text as far as it is decided what its parts are."""
        going = True
        while going and self.phase in ("reasoning", "waiting"):
            if self._begin(self._patterns, self._retry):
                return
            going = self._leave_reasoning() if self.phase == "reasoning" else self._leave_waiting()

    def _leave_reasoning(self) -> bool:
        at = self._text.find(self._end, self._from)
        if at < 0:
            self._from = max(self._from, len(self._text) - len(self._end) + 1)
            return False
        self._from = at + len(self._end)
        if self._triggers:
            self.phase = "waiting"
            return True
        self._tag, self._extra = [], [i for i, *more in map(self._encode, SPACES) if not more]
        self.phase = "opening"
        rest = bytes(self._text[self._from :]).lstrip()
        if rest:  # the answer begins in the token that ends the tag
            self.phase = "on"
            self._consume(self._tokenizer.greedy_tokenize(rest.decode(errors="ignore")))
        return False

    def _leave_waiting(self) -> bool:
        """Reasoning that the model opens hides the words in it."""
        opened = self._text.find(self._start, self._from) if self._start else -1
        found = _first(self._words, self._text, self._from)
        if opened >= 0 and (found is None or opened < found):
            self._from, self.phase = opened + len(self._start), "reasoning"
            return True
        if found is not None and not self._begin(self._words, self._from):
            self._from = found + 1
            return True
        if found is None:  # what may still become one begins in the last bytes
            self._from = max(self._from, len(self._text) - self._longest + 1)
        return False

    def _begin(self, triggers: list[re.Pattern[bytes]], start: int) -> bool:
        """Whether a trigger has been found, and the text from there on is the grammar's.

        If the grammar does not go with that text, the model has not meant it: it stays free.
        """
        at = _first(triggers, self._text, start)
        if at is None:
            return False
        later = [(begin, token) for begin, token in self._tokens if begin >= at]
        head = bytes(self._text[at : later[0][0] if later else None])
        tokens = self._tokenizer.greedy_tokenize(head.decode(errors="ignore"))
        tokens += [token for _, token in later]
        if self._matcher.validate_tokens(tokens) < len(tokens):
            self._retry = max(self._retry, at + 1)
            return False
        self.phase = "on"
        self._consume(tokens)
        return True


def _bytes_pattern(trigger: Trigger) -> re.Pattern[bytes]:
    text = trigger.text if trigger.is_pattern else re.escape(trigger.text)
    return re.compile(text.encode())


def _first(patterns: list[re.Pattern[bytes]], text: bytearray, start: int) -> int | None:
    """Where the first of the patterns' matches begins: at its first group, if it has one."""
    found = [match for pattern in patterns if (match := pattern.search(text, start))]
    starts = [next((i for i, _ in match.regs[1:] if i >= 0), match.start()) for match in found]
    return min(starts, default=None)


def _set(bits: npt.NDArray[np.uint32], tokens: Collection[int]) -> None:
    for i in tokens:
        bits[i >> 5] |= np.uint32(1 << (i & 31))


def _clear(bits: npt.NDArray[np.uint32], tokens: Collection[int]) -> None:
    for i in tokens:
        bits[i >> 5] &= ~np.uint32(1 << (i & 31))
