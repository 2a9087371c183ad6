"""From a prompt's text, images and sounds to token ids and the places of what is encoded.

Thread-safe: a server calls it where it tokenizes. Decoded images and sounds are opaque to it.
"""

from __future__ import annotations

import hashlib
import re
import threading
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from typing import Any, Protocol

import numpy.typing as npt
from msgspec import Struct

from gguf_serve.engine.encoders.audio import spectrograms
from gguf_serve.engine.encoders.audio_file import AudioFile
from gguf_serve.engine.encoders.vision_file import VisionFile
from gguf_serve.engine.errors import MediaError, TooManyTokensError
from gguf_serve.engine.media.image import decode_image, n_pixels
from gguf_serve.engine.media.limits import MediaLimits
from gguf_serve.engine.media.piece import Piece, Tile, Words, in_pairs
from gguf_serve.engine.media.prepare import joined, prepare
from gguf_serve.engine.media.resize import Floats
from gguf_serve.engine.media.sound import decode_sound
from gguf_serve.engine.media.span import MediaSpan
from gguf_serve.engine.media.video import frames

# The texts that belong to images are special tokens and line ends, one after another.
_PARTS = re.compile(r"\]<\][^\[\]]*\[>\[|<[^<>]*>|\[[A-Z_]+\]|\n\n|\n")
LARGE_PIXELS = 8_000_000  # to decode more takes 7 bytes for each, hundreds of MB
_ONE_LARGE_IMAGE = threading.Lock()


class Tokenizer(Protocol):
    @property
    def bos_id(self) -> int | None: ...
    def encode(
        self,
        text: str,
        *,
        add_special: bool = ...,
        parse_special: bool = ...,
        most: int | None = ...,
    ) -> list[int]: ...
    def token_of(self, text: str) -> int | None: ...


class Medium(Struct, frozen=True):
    """A decoded image or sound: texts and the encoder's inputs in prompt order.

    ``n_tokens``: of the inputs. ``seconds``: of a sound.
    """

    pieces: tuple[Piece | Floats, ...]
    n_tokens: int
    seconds: float = 0.0


class MediaPrompt(Struct, frozen=True):
    """Token ids, negative where ``spans`` are."""

    ids: tuple[int, ...]
    spans: tuple[MediaSpan, ...]


class MediaReader:
    """Reads images and sounds for one projector file."""

    def __init__(
        self,
        vision: VisionFile | None,
        audio: AudioFile | None,
        *,
        n_embd: int,
        limits: MediaLimits | None = None,
    ) -> None:
        """``n_embd``: of the text model."""
        self._vision, self._audio = vision, audio
        self._limits = limits or MediaLimits()
        self._together = vision is not None and vision.sees_together(n_embd)

    @property
    def vision(self) -> bool:
        return self._vision is not None

    @property
    def audio(self) -> bool:
        return self._audio is not None

    def image(self, data: bytes) -> Medium:
        """Decode an image file; MediaError says why it cannot be used."""
        if self._vision is None:
            raise MediaError("this model takes no images: its projector is for audio only")
        with _ONE_LARGE_IMAGE if n_pixels(data) > LARGE_PIXELS else nullcontext():
            pixels = decode_image(data, self._limits.max_pixels)
            pieces = joined(prepare(self._vision.kind, pixels, self._vision.limits))
        return self._medium(pieces)

    def video(self, data: bytes) -> Medium:
        """Decode a video file to images with texts that say the time; MediaError says why it
        cannot be used. Texts are llama-server's."""
        if self._vision is None:
            raise MediaError("this model takes no videos: its projector is for audio only")
        limits, n_frames, n_pixels = self._limits, 0, 0
        pieces: list[Piece] = [Words("Video:")]
        interval, next_time = limits.video_timestamp_interval / 1000, 0.0
        with _ONE_LARGE_IMAGE:
            for seconds, found in self._frames(data):
                tiles = [piece.pixels for piece in found if isinstance(piece, Tile)]
                n_frames += max(pixels.shape[2] // 3 for pixels in tiles)
                n_pixels += sum(pixels.size // 3 for pixels in tiles)
                if n_frames > limits.max_frames or n_pixels > limits.max_pixels:
                    raise MediaError(
                        f"the video's first {seconds:g} seconds have {n_frames} frames with "
                        f"{n_pixels} pixels for the model, more than {limits.max_frames} or "
                        f"{limits.max_pixels}; --video-fps is {limits.video_fps:g}"
                    )
                pieces += found
                if interval and seconds >= next_time:
                    minutes, rest = divmod(seconds, 60)
                    pieces.append(Words(f"[{minutes:.0f}m{rest:.2f}s]"))
                    next_time += interval
        if not n_frames:
            raise MediaError("the video has no frames")
        return self._medium(pieces)

    def _frames(self, data: bytes) -> Iterator[tuple[float, list[Piece]]]:
        """(seconds, pieces) of each frame of a video, or of each two of a model whose kernel is
        for two, as far as their sizes agree. One that is left over is a still image, which is both
        frames."""
        assert self._vision is not None
        waiting: tuple[float, list[Piece]] | None = None
        for seconds, pixels in frames(data, self._limits):
            found = joined(prepare(self._vision.kind, pixels, self._vision.limits))
            if not self._vision.two_frames:
                yield seconds, found
            elif waiting is None:
                waiting = seconds, found
            elif (pair := in_pairs(waiting[1], found)) is not None:
                yield waiting[0], pair
                waiting = None
            else:
                yield waiting
                waiting = seconds, found
        if waiting is not None:
            yield waiting

    def sound(self, data: bytes) -> Medium:
        """Decode a sound file; MediaError says why it cannot be used."""
        if self._audio is None:
            raise MediaError("this model takes no audio: its projector is for images only")
        around = self._audio.input
        samples = decode_sound(data, self._limits.max_seconds, around.rate)
        seconds = len(samples) / around.rate
        if seconds > around.most_seconds:
            raise MediaError(
                f"the sound has {seconds:g} seconds, more than the {around.most_seconds:g} that "
                "this model's encoder takes"
            )
        pieces: list[Piece | Floats] = [around.before] if around.before else []
        pieces += spectrograms(self._audio, samples)
        pieces += [around.after] if around.after else []
        return self._medium(pieces, seconds)

    def prompt(
        self,
        text: str,
        marker: str,
        media: Sequence[Medium],
        tokenizer: Tokenizer,
        most: int | None = None,
    ) -> MediaPrompt:
        """Tokens of ``text``, in which each ``marker`` stands for the next of ``media``.

        Each piece of text is tokenized by itself, as llama.cpp does. MediaError if the numbers
        of markers and media differ: the chat template has left something out, and
        TooManyTokensError as soon as there are more tokens than ``most``.
        """
        texts = text.split(marker)
        if len(texts) != len(media) + 1:
            raise MediaError(
                f"the chat template has room for {len(texts) - 1} of {len(media)} images and sounds"
            )
        ids = tokenizer.encode(texts[0], add_special=True, parse_special=True, most=most)
        if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_id:
            del ids[0]  # the template has written one too
        spans: list[MediaSpan] = []
        for medium, after in zip(media, texts[1:], strict=True):
            for piece in medium.pieces:
                if isinstance(piece, Words):
                    ids += tokenizer.encode(piece, add_special=False, parse_special=True)
                elif isinstance(piece, str):
                    ids += marker_ids(piece, tokenizer)
                else:
                    span = self._span(len(ids), piece)
                    ids += span.ids
                    spans.append(span)
            if after:
                ids += tokenizer.encode(after, add_special=False, parse_special=True, most=most)
            if most is not None and len(ids) > most:
                raise TooManyTokensError(len(ids), most)
        return MediaPrompt(tuple(ids), tuple(spans))

    def spans(self, medium: Medium, start: int) -> list[MediaSpan]:
        """Where the inputs of a medium go, one after the other from a place of a prompt on."""
        found = list[MediaSpan]()
        for piece in medium.pieces:
            if not isinstance(piece, str):
                found.append(self._span(found[-1].end if found else start, piece))
        return found

    def _medium(self, pieces: Sequence[Piece | Floats], seconds: float = 0.0) -> Medium:
        counts = [self._count(piece) for piece in pieces if not isinstance(piece, str)]
        return Medium(tuple(pieces), sum(counts), seconds)

    def _count(self, piece: Tile | Floats) -> int:
        if isinstance(piece, Tile):
            assert self._vision is not None
            height, width = piece.pixels.shape[:2]
            return self._vision.n_tokens(height, width, piece.layout)
        assert self._audio is not None
        return self._audio.n_tokens(piece.shape[1])

    def _span(self, start: int, piece: Tile | Floats) -> MediaSpan:
        count = self._count(piece)
        if not isinstance(piece, Tile):
            return MediaSpan(start, count, _key(piece, ()), piece, (count, 1))
        assert self._vision is not None
        n_before = self._vision.n_before(start)
        grid = self._vision.token_grid(*piece.pixels.shape[:2])
        return MediaSpan(
            start, count + n_before, _key(piece.pixels, (*piece.layout, n_before)), piece.pixels,
            grid, self._together, piece.layout, n_before, self._vision.marks,
        )  # fmt: skip


def _key(input: npt.NDArray[Any], more: tuple[int, ...]) -> bytes:
    """What tells inputs of an encoder from others."""
    return hashlib.sha256(f"{input.shape}{more or ''}".encode() + input.tobytes()).digest()


def marker_ids(text: str, tokenizer: Tokenizer) -> list[int]:
    """Tokens of the texts around an image: those whose whole text is a token are that token."""
    ids: list[int] = []
    at = 0
    for match in _PARTS.finditer(text):
        if match.start() > at:
            ids += tokenizer.encode(text[at : match.start()], add_special=False, parse_special=True)
        token = tokenizer.token_of(match[0])
        if token is None:
            ids += tokenizer.encode(match[0], add_special=False, parse_special=True)
        else:
            ids.append(token)
        at = match.end()
    if text[at:]:
        ids += tokenizer.encode(text[at:], add_special=False, parse_special=True)
    return ids
