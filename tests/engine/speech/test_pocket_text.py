"""What Pocket TTS is given of a text: how it is written, in which parts, after which voice."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from gguf_serve.engine.encoders.reader import Medium
from gguf_serve.engine.errors import ModelError, RequestError
from gguf_serve.engine.media.span import MediaSpan
from gguf_serve.engine.request import Speaking
from gguf_serve.engine.speech.pocket_text import PocketSpeech, prepared

N_VOICE = 4
VOICE = b"a sound"


class Words:
    """A tokenizer of words, with the space before them, and of single marks and digits."""

    def __init__(self, special: Sequence[str] = ("<|bos_before_voice|>", "<|audio_bos|>")) -> None:
        self.texts = list(special)

    def encode(self, text: str, **how: bool) -> list[int]:
        assert how == {"add_special": False, "parse_special": False}
        found = re.findall(r" ?[A-Za-zÀ-ÿ]+| ?\d|[^\w ]| ", f" {text}")
        self.texts += [piece for piece in dict.fromkeys(found) if piece not in self.texts]
        return [self.texts.index(piece) for piece in found]

    def piece(self, token: int) -> bytes:
        return self.texts[token].encode()

    def token_of(self, text: str) -> int | None:
        return self.texts.index(text) if text in self.texts else None

    def text(self, ids: Sequence[int]) -> str:
        return "".join(self.texts[i] for i in ids if i >= 0)


class Voices:
    """A reader of sounds, which have all the same voice."""

    def sound(self, data: bytes) -> Medium:
        assert data == VOICE
        return Medium((np.zeros((1, 8), np.float32),), N_VOICE)

    def spans(self, medium: Medium, start: int) -> list[MediaSpan]:
        (input,) = medium.pieces
        assert not isinstance(input, str)
        return [MediaSpan(start, N_VOICE, b"the voice", np.asarray(input), (N_VOICE, 1))]


def speech(tokenizer: Any = None) -> PocketSpeech:
    media: Any = Voices()
    return PocketSpeech(tokenizer or Words(), media, "english")


def parts(text: str) -> list[str]:
    tokenizer = Words()
    requests = speech(tokenizer).requests(text, voice=VOICE)
    return [tokenizer.text(request.prompt[1 + N_VOICE : -1]) for request in requests]


def test_the_text_follows_the_voice() -> None:
    tokenizer = Words()
    (request,) = speech(tokenizer).requests("hello there", voice=VOICE)
    (span,) = request.media
    assert (span.start, span.count) == (1, N_VOICE)
    assert tokenizer.text(request.prompt[:1]) == "<|bos_before_voice|>"
    assert max(request.prompt[span.start : span.end]) < 0
    assert tokenizer.text(request.prompt[span.end :]) == " Hello there.<|audio_bos|>"
    assert request.wants == Speaking(3)
    assert request.sampling.temperature == 0.3


def test_a_vocabulary_without_a_token_before_the_voice() -> None:
    (request,) = speech(Words(["<|audio_bos|>"])).requests("Yes.", voice=VOICE)
    assert request.media[0].start == 0


def test_a_vocabulary_without_the_token_of_speech() -> None:
    with pytest.raises(ModelError, match=r"<\|audio_bos\|>"):
        speech(Words([]))


@pytest.mark.parametrize(
    ("text", "pads", "expected"),
    [
        (" one;  two\nthree ", False, "One, two three."), ("Was it?", False, "Was it?"),
        ("élan", False, "Élan."), ("Four words of it", True, "        Four words of it."),
        ("There are five words here", True, "There are five words here."),
    ],
)  # fmt: skip
def test_how_a_text_is_written(text: str, pads: bool, expected: str) -> None:
    assert prepared(text, pads) == expected


@pytest.mark.parametrize("text", ["", " \n "])
def test_no_text(text: str) -> None:
    with pytest.raises(RequestError, match="no text"):
        speech().requests(text, voice=VOICE)


def test_no_voice() -> None:
    with pytest.raises(RequestError, match="no voice"):
        speech().requests("Hello.")


def test_a_language() -> None:
    with pytest.raises(RequestError, match="'en'"):
        speech().requests("Hello.", voice=VOICE, language="en")


def test_sentences_are_together_as_long_as_they_are_short() -> None:
    sentence = " It is " + "so " * 17 + "long!?"  # 21 tokens
    found = parts(5 * sentence)
    assert found == [2 * sentence, 2 * sentence, sentence]


def test_long_sentences_are_cut_at_their_pauses() -> None:
    clause = " And" + 29 * " so" + ","  # 31 tokens
    assert parts("Yes." + 2 * clause + " no") == [" Yes." + clause, clause + " no."]


def test_marks_within_numbers_end_nothing() -> None:
    words = 20 * " so"
    text = f" It is{words} 3.14{words} 2.5. Then{words}."
    assert parts(text) == [f" It is{words} 3.14{words} 2.5.", f" Then{words}."]


def test_a_sentence_without_pauses_stays_whole() -> None:
    text = " Oh" + 80 * " so" + "."
    assert parts(text) == [text]
