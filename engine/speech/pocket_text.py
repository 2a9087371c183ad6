"""What Pocket TTS is given of a text: it has learned to speak single sentences, so a long text is
spoken in parts, each of them after the same voice.

Source: https://github.com/kyutai-labs/pocket-tts (models/text_chunking.py).
"""

from __future__ import annotations

from collections.abc import Sequence

from gguf_serve.engine.encoders.reader import MediaReader, Medium
from gguf_serve.engine.errors import ModelError, RequestError
from gguf_serve.engine.media.mel import SPEECH_RATE
from gguf_serve.engine.request import Request, Speaking
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.speech.pocket import variant_of
from gguf_serve.engine.text.tokenizer import Tokenizer

BEGIN, BEFORE_VOICE = "<|audio_bos|>", "<|bos_before_voice|>"
SENTENCE_ENDS, PAUSES = ".!...?", ",;:"
MOST = 50  # tokens of a part
FEW_WORDS, PADDING = 5, 8 * " "


class PocketSpeech:
    """A Speech."""

    rate = SPEECH_RATE
    languages: tuple[str, ...] = ()
    needs_voice = True

    def __init__(self, tokenizer: Tokenizer, media: MediaReader, variant: str) -> None:
        """ModelError if the vocabulary has not the token that speech begins with."""
        begin, before_voice = (tokenizer.token_of(text) for text in (BEGIN, BEFORE_VOICE))
        if begin is None:
            raise ModelError(f"the vocabulary has no token {BEGIN}, which speech begins with")
        self._tokenizer, self._media, self._variant = tokenizer, media, variant_of(variant)
        self._before_voice = () if before_voice is None else (before_voice,)
        self._begin = begin
        self._ends, self._pauses = (
            # The first token is the space before a text.
            frozenset(self._encode(marks)[1:]) for marks in (SENTENCE_ENDS, PAUSES)
        )  # fmt: skip

    def requests(
        self, text: str, *, voice: bytes | None = None, language: str = ""
    ) -> tuple[Request, ...]:
        """One for each part of the text."""
        if language:
            raise RequestError(f"language {language!r}: the model speaks one, which has no name")
        if voice is None:
            raise RequestError("there is no voice, which this model needs: a sound of who speaks")
        ids = self._encode(prepared(text, self._variant.pads))
        medium = self._media.sound(voice)
        return tuple(self._request(medium, part) for part in self._parts(ids))

    def _request(self, voice: Medium, words: Sequence[int]) -> Request:
        ids = list(self._before_voice)
        spans = self._media.spans(voice, len(ids))
        for span in spans:
            ids += span.ids
        ids += [*words, self._begin]
        sampling = SamplingParams(temperature=self._variant.temperature)
        return Request(tuple(ids), sampling, media=tuple(spans), wants=Speaking(len(words)))

    def _encode(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, add_special=False, parse_special=False)

    def _parts(self, ids: list[int]) -> list[list[int]]:
        """Sentences together, as far as they have ``MOST`` tokens; one that has more is cut at its
        pauses."""
        segments = list[list[int]]()
        for sentence in self._segments(ids, self._ends):
            fits = len(sentence) <= MOST
            segments += [sentence] if fits else self._segments(sentence, self._pauses)
        parts = segments[:1]
        for segment in segments[1:]:
            if len(parts[-1]) + len(segment) <= MOST:
                parts[-1] = parts[-1] + segment
            else:
                parts.append(segment)
        return parts

    def _segments(self, ids: list[int], marks: frozenset[int]) -> list[list[int]]:
        """Cut after marks, but not within numbers."""
        found = [ids[:1]]
        for i in range(1, len(ids)):
            cut = ids[i - 1] in marks and ids[i] not in marks and not self._in_number(ids, i)
            if cut:
                found.append([])
            found[-1].append(ids[i])
        return found

    def _in_number(self, ids: Sequence[int], i: int) -> bool:
        """Whether the mark before a token is between two digits."""
        before = b"".join(self._tokenizer.piece(token) for token in ids[max(i - 2, 0) : i])
        return before[-2:-1].isdigit() and self._tokenizer.piece(ids[i])[:1].isdigit()


def prepared(text: str, pads: bool) -> str:
    """A text as the model has learned them: a capital at the beginning, a mark at the end, no
    semicolons; RequestError if there is none."""
    for written, meant in (("\n", " "), ("\r", " "), ("  ", " "), (";", ",")):
        text = text.replace(written, meant)
    text = text.strip()
    if not text:
        raise RequestError("there is no text to be spoken")
    text = text[0].upper() + text[1:] + ("." if text[-1].isalnum() else "")
    return PADDING + text if pads and len(text.split()) < FEW_WORDS else text
