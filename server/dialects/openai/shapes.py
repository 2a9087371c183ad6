"""The objects in ``choices``: of chat completions and of text completions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from gguf_serve.engine.chat.delta import ToolCallDelta
from gguf_serve.engine.request import TokenScore
from gguf_serve.server.interface import Tokenizer
from gguf_serve.server.requests.answer import Choice, Piece
from gguf_serve.server.requests.generate import Options
from gguf_serve.server.requests.logprobs import (
    TextOffsets,
    content_logprobs,
    legacy_logprobs,
    prompt_logprobs,
)
from gguf_serve.server.requests.prompts import prompt_text


class ChatShape:
    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    usage_in_final_chunk = False
    prompt_in_choice = False

    def __init__(self, options: Options) -> None:
        self.options = options

    def opening(self, index: int, choice: Choice) -> dict[str, Any] | None:
        delta = {"role": "assistant", "content": None}
        return {"index": index, "delta": delta, "finish_reason": None}

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        delta: dict[str, Any]
        if piece.text:
            delta = {"content": piece.text}
        elif piece.reasoning:
            delta = {"reasoning_content": piece.reasoning}
        else:
            delta = {"tool_calls": [call_delta(call) for call in piece.calls]}
        return self._with_scores({"index": index, "delta": delta, "finish_reason": None}, piece)

    def final(self, index: int, rest: Piece, finish_reason: str | None) -> dict[str, Any]:
        chunk = {"index": index, "delta": {}, "finish_reason": finish_reason}
        return self._with_scores(chunk, rest) if rest.scores or rest.tokens else chunk

    def whole(self, index: int, choice: Choice, piece: Piece) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": piece.text}
        if piece.reasoning:
            message["reasoning_content"] = piece.reasoning
        if piece.calls:
            message["tool_calls"] = [whole_call(call) for call in piece.calls]
        whole = {"index": index, "message": message, "finish_reason": choice.finish_reason}
        return self._with_scores(whole, piece)

    def _with_scores(self, choice: dict[str, Any], piece: Piece) -> dict[str, Any]:
        options = self.options
        if options.n_top is not None:
            content = content_logprobs(piece.scores, options.n_top, options.post_sampling)
            choice["logprobs"] = {"content": content}
        return choice | token_fields(options, piece)


def token_fields(options: Options, piece: Piece) -> dict[str, Any]:
    """The tokens of a piece, by the names under which they were asked for."""
    names = (("tokens", options.return_tokens), ("token_ids", options.return_token_ids))
    return {name: piece.tokens for name, is_asked in names if is_asked}


def prompt_fields(options: Options, choice: Choice) -> dict[str, Any]:
    """What vLLM's clients ask to know of the prompt."""
    found: dict[str, Any] = {}
    if options.return_token_ids:
        found["prompt_token_ids"] = choice.prompt.ids
    if options.prompt_logprobs is not None:
        found["prompt_logprobs"] = prompt_logprobs(choice.prompt_scores, options.prompt_logprobs)
    return found


def call_delta(call: ToolCallDelta) -> dict[str, Any]:
    """Its id and name once, and from then on only more of its arguments."""
    if not call.id:
        return {"index": call.index, "function": {"arguments": call.arguments}}
    return {"index": call.index} | whole_call(call)


def whole_call(call: ToolCallDelta) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {"id": call.id, "type": "function", "function": function}


class TextShape:
    id_prefix = "cmpl-"
    whole_object = "text_completion"
    chunk_object = "text_completion"
    usage_in_final_chunk = True
    prompt_in_choice = True

    def __init__(self, options: Options, tokenizer: Tokenizer, echo: bool) -> None:
        self.options = options
        self.tokenizer = tokenizer
        self.echo = echo
        self._offsets: dict[int, TextOffsets] = {}  # of each choice, into the text it is sent

    def opening(self, index: int, choice: Choice) -> dict[str, Any] | None:
        return self._echoed(index, choice, Piece(), None) if self.echo else None

    def delta(self, index: int, piece: Piece) -> dict[str, Any]:
        return self._choice(index, piece, [score.piece for score in piece.scores], None)

    def final(self, index: int, rest: Piece, finish_reason: str | None) -> dict[str, Any]:
        pieces = [score.piece for score in rest.scores]
        return self._choice(index, rest, pieces, finish_reason)

    def whole(self, index: int, choice: Choice, piece: Piece) -> dict[str, Any]:
        if self.echo:
            return self._echoed(index, choice, piece, choice.finish_reason)
        return self.final(index, piece, choice.finish_reason)

    def _echoed(
        self, index: int, choice: Choice, piece: Piece, finish_reason: str | None
    ) -> dict[str, Any]:
        """The prompt in front of `piece`, with its scores if they were asked for."""
        prompt = choice.prompt
        text = prompt_text(prompt, self.tokenizer)
        scored = [*choice.prompt_scores, *piece.scores]
        pieces = [self.tokenizer.piece(id, special=True) for id in prompt.ids]
        # A BOS or a leading space that the text has not takes no room in it.
        n_characters = len(b"".join(pieces).decode("utf-8", "replace"))
        self._offsets[index] = TextOffsets(len(text) - n_characters)
        echoed = Piece(text + piece.text, prompt.ids + piece.tokens)
        pieces += [score.piece for score in piece.scores]
        return self._choice(index, echoed, pieces, finish_reason, scored)

    def _choice(
        self,
        index: int,
        piece: Piece,
        pieces: Sequence[bytes],
        finish_reason: str | None,
        scores: Sequence[TokenScore | None] | None = None,
    ) -> dict[str, Any]:
        options = self.options
        logprobs: dict[str, Any] | None = None
        if options.n_top is not None:
            scores = piece.scores if scores is None else scores
            offsets = self._offsets.setdefault(index, TextOffsets())
            known = [score for score in scores if score is not None]
            logprobs = {
                **legacy_logprobs(scores, pieces, options.n_top, offsets),
                "content": content_logprobs(known, options.n_top, options.post_sampling),
            }
        choice: dict[str, Any] = {
            "text": piece.text,
            "index": index,
            "logprobs": logprobs,
            "finish_reason": finish_reason,
        }
        return choice | token_fields(options, piece)
