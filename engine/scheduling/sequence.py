"""A request on its way through the scheduler, and its share in a forward.

Integers and lists only, as in scheduler.py; embeddings of media are carried along.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, Literal

from msgspec import Struct, field

from gguf_serve.engine.media.span import MediaSpan
from gguf_serve.engine.request import Generation, Request, Speaking
from gguf_serve.engine.scheduling.checkpoints import StateCopy
from gguf_serve.engine.scheduling.page_cache import PageCopy, PagedTokens


class Sequence(PagedTokens, kw_only=True, eq=False):
    """A request on its way: ``tokens`` are the prompt's and the generated ones."""

    id: int
    request: Request
    n_prompt: int
    arrival: int = -1  # place in the order of arrival; set by the scheduler
    slot: int = -1
    n_cached: int = 0  # prompt tokens that were computed when it first got a slot
    n_reused: int = 0  # leading tokens that it has taken from the cache, at most
    recomputed: bool = False  # without what it has taken from the cache
    n_encoder: int = 0  # leading tokens that an encoder reads, for a decoder
    n_dropped: int = 0  # tokens that a full context has dropped
    n_resumed: int = 0  # generated tokens that another engine has delivered
    n_scored: int = 0  # leading tokens with logits delivered, if the prompt is scored
    adapters: tuple[tuple[str, float], ...] = ()  # fingerprints and scales of those that count
    adapter_scales: tuple[float, ...] = ()  # of all that there is room for; empty: zeros
    adapter_starts: tuple[int, ...] = ()  # the first tokens that have them; empty: they all do
    marks: set[int] = field(default_factory=set)  # positions at which to make a checkpoint
    embeddings: dict[int, Any] = field(default_factory=dict)  # of media, by their number
    spoken: dict[int, Any] = field(default_factory=dict)  # of frames of speech, by position, [1, n]
    n_ahead: int = 0  # guessed tokens that its slot's state has seen and that have not come
    rewound: bool = False  # its state was put back: tokens that have come are computed again
    masks: list[int] = field(default_factory=list)  # positions that are still to become tokens
    is_loading: bool = False  # what it can begin with is on its way from a disk
    awaited: int = -1  # the last sequence that was seen computing this one's prefix
    state: Literal["new", "waiting", "running", "finished"] = "new"

    @classmethod
    def from_request(cls, id: int, request: Request, salt: Hashable = None) -> Sequence:
        """A prompt that is scored or embedded shares nothing: what comes out of the model for
        cached tokens is not cached."""
        return cls(
            list(request.prompt),
            salt,
            request.cache_prompt and isinstance(request.wants, Generation | Speaking),
            id=id,
            request=request,
            n_prompt=len(request.prompt),
        )

    def encode_first(self, start: int) -> None:
        """Its prompt is an encoder's, and a text begins with the token ``start``.

        What an encoder makes of a token depends on those after it, so that only sequences with the
        same prompt share its pages, and all of them.
        """
        self.n_encoder = len(self.tokens)
        self.salt = self.salt, tuple(self.tokens)
        if self.request.has_text:
            self.tokens.append(start)
            self.n_prompt += 1

    def beside(self, tokens: list[int]) -> Sequence:
        """The same request and pages, for a model of its own that reads these tokens."""
        return Sequence(
            tokens, id=self.id, request=self.request, n_prompt=self.n_prompt, slot=self.slot,
            table=self.table,
        )  # fmt: skip

    @property
    def encodes(self) -> bool:
        """Whether its next tokens are an encoder's, which see each other."""
        return self.n_computed < self.n_encoder

    def media_between(self, start: int, end: int) -> Iterator[tuple[MediaSpan, Any]]:
        """The images and sounds, and the frames of its speech, with places from ``start`` to before
        ``end``, and their embeddings."""
        for i, span in enumerate(self.request.media):
            if span.start < end and span.end > start:
                yield span, self.embeddings[i]
        for position in range(max(start, self.n_prompt), end) if self.spoken else ():
            spoken = self.spoken[position]
            yield MediaSpan(position, 1, b"", spoken, (1, 1)), spoken

    @property
    def has_media(self) -> bool:
        """Whether tokens of it stand for embeddings that are given."""
        return bool(self.request.media or self.spoken)

    @property
    def missing_media(self) -> int | None:
        """The number of the first image or sound that has to be encoded before what follows."""
        media = self.request.media
        missing = (
            i for i, s in enumerate(media) if s.end > self.n_computed and i not in self.embeddings
        )
        return next(missing, None)

    def sound_beginning(self, n_agreed: int) -> int:
        """So many computed tokens, or where they end inside an image whose tokens see each other,
        those before it; of an encoder's none if these are not all."""
        if n_agreed < self.n_encoder:
            return 0
        spans = (span for span in self.request.media if span.together)
        return next((span.start for span in spans if span.start < n_agreed < span.end), n_agreed)

    def whole_media(self, start: int, count: int, most: int) -> int:
        """``count``, less what needs embeddings that are not there or would cut an image whose
        tokens see each other; such an image may take ``most`` tokens."""
        missing = self.missing_media
        if missing is not None:
            count = min(count, max(self.request.media[missing].start - start, 0))
        for span in self.request.media:
            if not span.together or not span.start < start + count < span.end:
                continue
            if span.start > start:
                return span.start - start
            return span.count if span.count <= most else 0
        return count

    @property
    def n_generated(self) -> int:
        return len(self.tokens) + self.n_dropped - self.n_prompt - len(self.masks)

    @property
    def decodes(self) -> bool:
        """Whether what is pending follows its prompt."""
        return self.n_pending == 1 or self.rewound

    @property
    def has_prompt(self) -> bool:
        """Whether tokens of a prompt are pending."""
        return self.encodes or (self.n_pending > 1 and not self.rewound)

    @property
    def n_pending(self) -> int:
        """Tokens that are not computed; one: it is decoding, none: it waits for its end."""
        return len(self.tokens) - self.n_computed


class Chunk(Struct, frozen=True):
    """``count`` tokens of a sequence from position ``start``, and where logits are wanted.

    ``outputs`` "hidden": no logits, but the hidden states of the tokens; "masks": the logits for
    the masks at the positions ``masks``. The last tokens may be a ``draft``: guesses of what
    follows, none of which is one of the sequence's tokens yet, and after each logits are wanted.
    """

    seq: Sequence
    start: int
    count: int
    outputs: Literal["none", "last", "all", "hidden", "masks"]
    masks: tuple[int, ...] = ()
    draft: tuple[int, ...] = ()

    @property
    def n_outputs(self) -> int:
        last = 1 + len(self.draft)
        by_kind = {
            "none": 0, "last": last, "all": self.count, "hidden": 0, "masks": len(self.masks),
        }  # fmt: skip
        return by_kind[self.outputs]

    @property
    def end(self) -> int:
        """The position after the last of its tokens that are the sequence's."""
        return self.start + self.count - len(self.draft)

    def tokens(self, start: int) -> list[int]:
        """The tokens from position ``start`` on to its last one, the draft among them."""
        return [*self.seq.tokens[start : self.end], *self.draft]

    @property
    def encodes(self) -> bool:
        """Whether its tokens are an encoder's, for a decoder."""
        return self.start < self.seq.n_encoder

    @property
    def is_final(self) -> bool:
        """The chunk ends with the sequence: a token is to be sampled, or max_tokens is 0.

        Holds until a token is appended.
        """
        return self.start + self.count == len(self.seq.tokens)


class Plan(Struct, frozen=True):
    """One forward. It must be carried out, all its copies first; the cache counts on it."""

    chunks: list[Chunk]
    copies: list[PageCopy] = field(default_factory=list)
    saves: list[StateCopy] = field(default_factory=list)
    restores: list[StateCopy] = field(default_factory=list)  # after the saves
    started: list[Sequence] = field(default_factory=list)  # got their slot just now

    @property
    def n_tokens(self) -> int:
        return sum([chunk.count for chunk in self.chunks])

    @property
    def decodes(self) -> bool:
        """Whether all its tokens but those of drafts follow generated ones, one for each sequence,
        or a few where a sequence was rewound."""
        return all(
            chunk.outputs == "last" and (chunk.end - chunk.start == 1 or chunk.seq.rewound)
            for chunk in self.chunks
        )
