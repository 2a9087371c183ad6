"""What is known of the request that is being answered, for its line of the log."""

from __future__ import annotations

import time
from contextvars import ContextVar

from gguf_serve.engine.request import Delta, Event, Failed, Finished, Sound, Started


class Account:
    """The requests to the engine add to it as their events come."""

    def __init__(self) -> None:
        self.began = time.perf_counter()
        self.status: int | None = None  # None: no answer has begun
        self.is_complete = False  # all of the answer has been handed to the connection
        self.error = ""
        self.n_prompt = self.n_cached = 0  # tokens
        self.finish_reasons: dict[int, str] = {}  # the engine's, by the number of its request
        self._n_generated: dict[int, int] = {}  # tokens, by the number of the engine's request
        self._n_first = 0  # tokens that came with the first piece of text
        self._first = self._last = 0.0  # when text, or sound, came; 0: not yet

    @property
    def n_generated(self) -> int:
        return sum(self._n_generated.values())

    @property
    def first_token_ms(self) -> float | None:
        """Milliseconds from the request's header to the first token; None without one."""
        return 1e3 * (self._first - self.began) if self._first else None

    @property
    def tokens_per_second(self) -> float | None:
        """Of all choices together, behind the first token; None where there are too few."""
        n, seconds = self.n_generated - self._n_first, self._last - self._first
        return n / seconds if n > 0 and seconds > 0 else None

    def take(self, index: int, event: Event) -> None:
        if isinstance(event, Delta):
            self._last = time.perf_counter()
            if not self._first:
                self._first, self._n_first = self._last, len(event.tokens)
            self._n_generated[index] = self._n_generated.get(index, 0) + len(event.tokens)
        elif isinstance(event, Sound):
            # Of which no speed is told: how many tokens the first one is made of is not known.
            self._first = self._first or time.perf_counter()
        elif isinstance(event, Started):
            self.n_prompt += event.n_prompt
            self.n_cached += event.n_cached
        elif isinstance(event, Finished):
            self.finish_reasons[index] = event.reason
            if event.timings.predicted_n:
                self._n_generated[index] = event.timings.predicted_n
        elif isinstance(event, Failed):
            self.error = event.message


# Of the request that is being answered: what submits to the engine and what answers errors have it
# from here, so that it is not handed through all that reads a request.
account: ContextVar[Account | None] = ContextVar("account", default=None)


def note_error(message: str) -> None:
    """The reason of the request's failure, for its line."""
    current = account.get()
    if current is not None:
        current.error = message
