"""Scores of tokens in the two shapes of OpenAI's API."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import Any

import msgspec

from gguf_serve.engine.request import TokenScore

MANY = 32  # likeliest tokens of each
LOWEST_FLOAT = -3.4028234663852886e38  # stands for log 0, which JSON cannot say


def content_logprobs(scores: Iterable[TokenScore], n_top: int, post_sampling: bool) -> list[Any]:
    """``logprobs.content`` of chat completions, with llama-server's ``id``; written ones of
    tokens with many scores (see ``row``)."""
    value_name, list_name = ("prob", "top_probs") if post_sampling else ("logprob", "top_logprobs")

    def entry(id: int, piece: bytes, value: float) -> dict[str, object]:
        token = piece.decode("utf-8", "ignore")  # a cut character is whole in bytes only
        return {"id": id, "token": token, "bytes": list(piece), value_name: finite(value)}

    return [
        row(
            entry(score.id, score.piece, score.logprob)
            | {list_name: [entry(*top) for top in shown(score, n_top, post_sampling)]},
            n_top,
        )
        for score in scores
    ]


def row(scores: dict[str, Any], n_top: int) -> Any:
    """The scores of a token, as JSON where they are many: of hundreds of thousands of objects that
    are written in one go, nobody else has a turn, nor while the interpreter counts them."""
    return msgspec.Raw(msgspec.json.encode(scores)) if n_top >= MANY else scores


def shown(score: TokenScore, n_top: int, post_sampling: bool) -> list[tuple[int, bytes, float]]:
    return [top for top in score.top[:n_top] if not post_sampling or top[2] > 0.0]


def finite(value: float) -> float:
    return max(value, LOWEST_FLOAT)


class TextOffsets:
    """Where each token begins in the text, in characters."""

    def __init__(self, start: int = 0) -> None:
        self.end = start
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode

    def next(self, piece: bytes) -> int:
        """The offset of the token `piece`; a later part of a character is at its end."""
        begin = self.end
        self.end += len(self._decode(piece))
        return max(begin, 0)


def legacy_logprobs(
    scores: Sequence[TokenScore | None],
    pieces: Sequence[bytes],
    n_top: int,
    offsets: TextOffsets,
) -> dict[str, list[object]]:
    """``logprobs`` of text completions; a token without a score (the first) gets nulls.

    `pieces` parallels `scores`. As at OpenAI, the chosen token is always among its top ones.
    """
    return {
        "tokens": [legacy_token(piece) for piece in pieces],
        "token_logprobs": [score and finite(score.logprob) for score in scores],
        "top_logprobs": [score and row(legacy_top(score, n_top), n_top) for score in scores],
        "text_offset": [offsets.next(piece) for piece in pieces],
    }


def prompt_logprobs(
    scores: Sequence[TokenScore | None], n_top: int
) -> list[dict[str, object] | None]:
    """vLLM's ``prompt_logprobs``: of each token of the prompt an object with itself and the
    likeliest in its place, by their ids; the first has none. The rank of a token that is not among
    those is not known here, and null."""
    return [None if score is None else row(ranked(score, n_top), n_top) for score in scores]


def ranked(score: TokenScore, n_top: int) -> dict[str, Any]:
    def entry(piece: bytes, value: float, rank: int | None) -> dict[str, object]:
        text = piece.decode("utf-8", "replace")
        return {"logprob": finite(value), "rank": rank, "decoded_token": text}

    found = {
        str(id): entry(piece, value, place + 1)
        for place, (id, piece, value) in enumerate(score.top[:n_top])
    }
    found.setdefault(str(score.id), entry(score.piece, score.logprob, None))
    return found


def legacy_top(score: TokenScore, n_top: int) -> dict[str, float]:
    # Reversed, so that of two tokens with the same text the likelier one is kept.
    top = {legacy_token(piece): finite(value) for _, piece, value in reversed(score.top[:n_top])}
    top.setdefault(legacy_token(score.piece), finite(score.logprob))
    return top


def legacy_token(piece: bytes) -> str:
    """A piece that is not whole characters reads ``bytes:\\xe2\\x80``, as at OpenAI."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in piece)
