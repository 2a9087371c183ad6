"""The state of an answer while its events arrive: one Choice for each engine request.

This is the one stream that every dialect translates: the engine's events go in, Pieces of
reasoning, answer and tool calls come out, with the tokens and scores they stand for.
"""

from __future__ import annotations

import secrets
import string
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.chat.delta import ChatDelta, ToolCallDelta
from gguf_serve.engine.chat.format import ChatParser
from gguf_serve.engine.request import (
    Delta,
    Finished,
    Progress,
    PromptScored,
    Started,
    Timings,
    TokenScore,
)
from gguf_serve.server.requests.prompts import Prompt

FINISH_REASONS = {"eos": "stop", "word": "stop", "limit": "length", "cancelled": "stop"}
ID_LETTERS = string.ascii_letters + string.digits
LEAST_MS = 0.5  # between the first and the last token, for a rate


def random_id(prefix: str = "") -> str:
    return prefix + "".join(secrets.choice(ID_LETTERS) for _ in range(32))


class Piece(Struct, frozen=True):
    """What can be sent: of one kind of text, or calls; with the tokens and scores up to it."""

    text: str = ""
    tokens: tuple[int, ...] = ()
    scores: tuple[TokenScore, ...] = ()
    reasoning: str = ""
    calls: tuple[ToolCallDelta, ...] = ()

    @property
    def shows(self) -> bool:
        """False for tokens whose text nobody sees, such as the end of generation."""
        return bool(self.text or self.reasoning or self.calls)


class Choice:
    """One completion. Tokens whose text is held back wait for the piece that shows it."""

    def __init__(self, prompt: Prompt, parser: ChatParser | None = None) -> None:
        self.prompt = prompt
        self.started = Started(n_prompt=len(prompt.ids), n_cached=0, id_slot=-1)
        self.prompt_scores: tuple[TokenScore | None, ...] = ()
        self.finished: Finished | None = None
        self._parser = parser  # None: all text is answer
        self.n_reasoning = 0  # tokens
        self._n_calls = 0
        self._held_tokens: tuple[int, ...] = ()
        self._held_scores: tuple[TokenScore, ...] = ()
        self._n_decoded = 0
        self._started_at = time.perf_counter()
        self._first_token_at: float | None = None

    def take(self, event: object) -> Sequence[Piece]:
        """The pieces that an event completes; at the end what was held back, if anything."""
        if type(event) is Delta:
            return self._push(event)
        if type(event) is Started:
            self.started = event
            self._started_at = time.perf_counter()
        elif type(event) is PromptScored:
            self.prompt_scores = event.scores
        elif type(event) is Finished:
            self.finished = event
            return self._rest(event)
        return ()

    def _push(self, delta: Delta) -> Sequence[Piece]:
        if self._first_token_at is None:
            self._first_token_at = time.perf_counter()
        self._n_decoded += len(delta.tokens)
        tokens, scores = delta.tokens, delta.scores
        if self._held_tokens:
            tokens, scores = self._held_tokens + tokens, self._held_scores + scores
        if delta.text:
            pieces = self._pieces(delta.text, tokens, scores)
            if pieces:
                self._held_tokens, self._held_scores = (), ()
                return pieces
        self._held_tokens, self._held_scores = tokens, scores
        return ()

    def _pieces(
        self, text: str, tokens: tuple[int, ...], scores: tuple[TokenScore, ...]
    ) -> Sequence[Piece]:
        if self._parser is None:
            return (Piece(text, tokens, scores),)
        return self._split(self._parser.push(text), tokens, scores)

    def _rest(self, event: Finished) -> Sequence[Piece]:
        rest = self._parser.finish() if self._parser is not None else None
        held = self._held_tokens, self._held_scores
        pieces = self._split(rest, *held) if rest is not None else ()
        if pieces or not self._held_tokens or event.reason == "word":
            return pieces  # the tokens of a stop word are cut
        return (Piece("", *held),)

    def _split(
        self, delta: ChatDelta, tokens: tuple[int, ...], scores: tuple[TokenScore, ...]
    ) -> Sequence[Piece]:
        """A piece of each kind that the delta has; the tokens go with the first.

        The rest of a call that has begun before comes first, new calls last.
        """
        if delta.content and not delta.reasoning and not delta.calls:
            return (Piece(delta.content, tokens, scores),)
        calls = tuple(self._calls(delta))
        n_old = next((place for place, call in enumerate(calls) if call.id), len(calls))
        self.n_reasoning += len(tokens) if delta.reasoning else 0
        kinds = (
            Piece(calls=calls[:n_old]),
            Piece(reasoning=delta.reasoning),
            Piece(delta.content),
            Piece(calls=calls[n_old:]),
        )
        pieces = [piece for piece in kinds if piece.shows]
        if pieces:
            pieces[0] = replace(pieces[0], tokens=tokens, scores=scores)
        return pieces

    def _calls(self, delta: ChatDelta) -> Iterable[ToolCallDelta]:
        for call in delta.calls:
            if call.index < self._n_calls:
                yield ToolCallDelta(call.index, arguments=call.arguments)
            else:  # syntaxes without an id get one here
                self._n_calls = call.index + 1
                yield ToolCallDelta(call.index, call.id or random_id(), call.name, call.arguments)

    @property
    def finish_reason(self) -> str | None:
        """OpenAI's; "tool_calls" if there are any and the model itself has ended."""
        if self.finished is None:
            return None
        if self._n_calls and self.finished.reason in ("eos", "word"):
            return "tool_calls"
        return FINISH_REASONS[self.finished.reason]

    @property
    def timings(self) -> Timings:
        """The engine's when it has ended, before that what can be seen from here."""
        if self.finished is not None:
            return self.finished.timings
        now = time.perf_counter()
        first = self._first_token_at or now
        return Timings(
            cache_n=self.started.n_cached,
            prompt_n=self.started.n_prompt - self.started.n_cached,
            prompt_ms=1e3 * (first - self._started_at),
            predicted_n=self._n_decoded,
            predicted_ms=1e3 * (now - first),
        )


def join(pieces: Sequence[Piece]) -> Piece:
    """All pieces of an answer as one, with its calls whole."""
    return Piece(
        "".join(piece.text for piece in pieces),
        tuple(token for piece in pieces for token in piece.tokens),
        tuple(score for piece in pieces for score in piece.scores),
        "".join(piece.reasoning for piece in pieces),
        joined_calls(call for piece in pieces for call in piece.calls),
    )


def joined_calls(parts: Iterable[ToolCallDelta]) -> tuple[ToolCallDelta, ...]:
    first: dict[int, ToolCallDelta] = {}
    arguments: dict[int, list[str]] = {}
    for part in parts:
        first.setdefault(part.index, part)
        arguments.setdefault(part.index, []).append(part.arguments)
    return tuple(replace(call, arguments="".join(arguments[i])) for i, call in first.items())


def arguments_object(call: ToolCallDelta) -> Mapping[str, Any]:
    """The arguments as an object; text that was cut off is wrapped, as Anthropic advises."""
    try:
        value = msgspec.json.decode(call.arguments or "{}")
    except msgspec.DecodeError:
        value = None
    return value if isinstance(value, dict) else {"INVALID_JSON": call.arguments}


def usage(choices: Sequence[Choice], n: int) -> dict[str, object]:
    """Counts of all choices; a prompt counts once for its `n` choices."""
    prompts = choices[::n]
    n_prompt = sum(choice.started.n_prompt for choice in prompts)
    n_completion = sum(choice.timings.predicted_n for choice in choices)
    n_reasoning = sum(choice.n_reasoning for choice in choices)
    drafts = [choice.timings.drafts for choice in choices]
    n_predicted = sum(each.n_predicted for each in drafts)
    n_accepted = sum(each.n_predicted_accepted for each in drafts)
    details = ({"reasoning_tokens": n_reasoning} if n_reasoning else {}) | (
        {
            "accepted_prediction_tokens": n_accepted,
            "rejected_prediction_tokens": n_predicted - n_accepted,
        }
        if n_predicted
        else {}
    )
    return ({"completion_tokens_details": details} if details else {}) | {
        "prompt_tokens": n_prompt,
        "completion_tokens": n_completion,
        "total_tokens": n_prompt + n_completion,
        "prompt_tokens_details": {
            "cached_tokens": sum(choice.started.n_cached for choice in prompts)
        },
    }


def prompt_progress(event: Progress) -> dict[str, float]:
    return {
        "total": event.n_prompt,
        "cache": event.n_cached,
        "processed": event.n_done,
        "time_ms": round(event.ms),
    }


def timings(choices: Sequence[Choice]) -> dict[str, float]:
    """llama-server's ``timings``; of several choices the sums and the longest times."""
    each = [choice.timings for choice in choices]
    prompt_n = sum(one.prompt_n for one in each)
    prompt_ms = max(one.prompt_ms for one in each)
    predicted_n = sum(one.predicted_n for one in each)
    predicted_ms = max(one.predicted_ms for one in each)
    # The first token of a choice comes with its prompt.
    n_steps = sum(max(one.predicted_n - 1, 0) for one in each)
    drafted = sum(one.drafts.n_tokens for one in each)
    accepted = sum(one.drafts.n_accepted for one in each)
    drafts = {"draft_n": drafted, "draft_n_accepted": accepted} if drafted else {}
    return drafts | {
        "cache_n": sum(one.cache_n for one in each),
        "prompt_n": prompt_n,
        "prompt_ms": prompt_ms,
        "prompt_per_token_ms": ratio(prompt_ms, prompt_n),
        "prompt_per_second": ratio(1e3 * prompt_n, prompt_ms),
        "predicted_n": predicted_n,
        "predicted_ms": predicted_ms,
        "predicted_per_token_ms": ratio(predicted_ms, n_steps),
        # Tokens that came in one step have no rate.
        "predicted_per_second": ratio(1e3 * n_steps, predicted_ms, LEAST_MS),
    }


def ratio(dividend: float, divisor: float, least: float = 0.0) -> float:
    """0 for a divisor of ``least`` or less."""
    return dividend / divisor if divisor > least else 0.0
