"""Qwen3-TTS (https://arxiv.org/abs/2601.15621): the model writes the first code of each frame, its
code predictor the others; a frame's embedding is the sum of all its codes' and of a padding text
token's, since the text has been read before.

The prompt's rows are sums as well, of a token of the text and one of the codes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.encoders.encoder import Embeddings
from gguf_serve.engine.encoders.reader import MediaReader
from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.errors import ModelError, RequestError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.media.span import MediaSpan
from gguf_serve.engine.request import Request, Speaking
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.engine.speech.code2wav import Code2Wav
from gguf_serve.engine.speech.predictor import Choose, CodePredictor, chooser, read_tower
from gguf_serve.engine.speech.speaker import Features, FixedMask, Floats, Frame, generator
from gguf_serve.engine.speech.voicing import FIRST
from gguf_serve.engine.text.tokenizer import Tokenizer
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

RATE = 24000
ROLE = "<|im_start|>assistant\n"
LANGUAGE = "<|codec_language_{}|>"
NO_THOUGHT = "<|codec_nothink|>"
NEEDED = {
    "code_0": "<|codec_0|>", "code_bos": "<|codec_bos|>", "code_eos": "<|codec_eos_token|>",
    "code_pad": "<|codec_pad|>", "think": "<|codec_think|>", "think_bos": "<|codec_think_bos|>",
    "think_eos": "<|codec_think_eos|>", "text_pad": "<tts_pad>", "text_bos": "<tts_text_bos>",
    "text_eos": "<tts_text_eod>",
}  # fmt: skip
CODES = {
    "zh": "chinese", "en": "english", "de": "german", "it": "italian", "pt": "portuguese",
    "es": "spanish", "ja": "japanese", "ko": "korean", "fr": "french", "ru": "russian",
}  # fmt: skip
# Frames at most, for a speech that finds no end: some four are usual for a token of its text.
LEAST_LIMIT, FRAMES_OF_TOKEN = 512, 25
DEFAULT_LANGUAGE, ANY_LANGUAGE = "english", "auto"
# The published generation_config.json
SAMPLING = SamplingParams(
    temperature=0.9, top_k=50, top_p=1.0, min_p=0.0, repeat_penalty=1.05, repeat_last_n=-1
)


class Marks(Struct, frozen=True):
    """Tokens with a meaning of their own, by the texts that files have for them."""

    code_0: int
    code_bos: int
    code_eos: int
    code_pad: int
    think: int
    think_bos: int
    think_eos: int
    text_pad: int
    text_bos: int
    text_eos: int
    no_think: int | None
    languages: dict[str, int]


@lru_cache(maxsize=1)  # for the Speech and the Speaker of a model: it looks at all tokens
def read_marks(tokenizer: Tokenizer) -> Marks:
    """ModelError names a token that is missing."""

    languages = {LANGUAGE.format(name): name for name in CODES.values()}
    wanted = {text.encode(): text for text in (*NEEDED.values(), NO_THOUGHT, *languages)}
    pieces = ((i, tokenizer.piece(i)) for i in range(tokenizer.n_vocab))
    found = {wanted[piece]: i for i, piece in pieces if piece in wanted}
    for text in NEEDED.values():
        if text not in found:
            raise ModelError(f"the vocabulary has no token {text}, which Qwen3-TTS speaks with")
    return Marks(
        **{name: found[text] for name, text in NEEDED.items()},
        no_think=found.get(NO_THOUGHT),
        languages={name: found[text] for text, name in languages.items() if text in found},
    )


class Qwen3Speech:
    """A Speech."""

    rate = RATE
    needs_voice = False

    def __init__(self, tokenizer: Tokenizer, media: MediaReader, variant: str = "") -> None:
        """``media``: what reads voices; ``variant`` does not matter."""
        self._tokenizer, self._media, self._marks = tokenizer, media, read_marks(tokenizer)
        any_language = (ANY_LANGUAGE,) if self._marks.no_think is not None else ()
        self.languages = (*self._marks.languages, *any_language)

    def requests(
        self, text: str, *, voice: bytes | None = None, language: str = ""
    ) -> tuple[Request, ...]:
        """One request."""
        marks, text = self._marks, text.strip()
        if not text:
            raise RequestError("there is no text to be spoken")
        words = self._tokenizer.encode(text, add_special=False, parse_special=False)
        role = self._tokenizer.encode(ROLE, add_special=False, parse_special=True)
        begin = [(marks.text_pad, token) for token in self._thoughts(language)]
        spoken = [
            (marks.text_bos, marks.code_pad),
            *((word, marks.code_pad) for word in words),
            (marks.text_eos, marks.code_pad),
            (marks.text_pad, marks.code_bos),
        ]
        spans = [_sums(len(role), begin)]
        if voice is not None:
            spans.append(self._voice(voice, spans[-1].end))
        spans.append(_sums(spans[-1].end, spoken))
        ids = list(role)
        for span in spans:
            ids += span.ids
        most = max(LEAST_LIMIT, FRAMES_OF_TOKEN * len(words))
        wants = Speaking(len(words))
        return (Request(tuple(ids), SAMPLING, most, media=tuple(spans), wants=wants),)

    def _thoughts(self, language: str) -> list[int]:
        """The codes before the text, which say the language."""
        marks, name = self._marks, CODES.get(language.lower(), language.lower()) or DEFAULT_LANGUAGE
        if name == ANY_LANGUAGE and marks.no_think is not None:
            return [marks.no_think, marks.think_bos, marks.think_eos]
        if name not in marks.languages:
            raise RequestError(
                f"language {language!r} is not known, expected one of {', '.join(self.languages)}"
            )
        return [marks.think, marks.think_bos, marks.languages[name], marks.think_eos]

    def _voice(self, data: bytes, start: int) -> MediaSpan:
        """The voice's one row, and the padding that is added to it."""
        span = self._media.spans(self._media.sound(data), start)[0]
        key = hashlib.sha256(span.key + b"and padding").digest()
        return replace(span, key=key, layout=(self._marks.text_pad,))


def _sums(start: int, pairs: Sequence[tuple[int, int]]) -> MediaSpan:
    """Places of a prompt with the sums of two tokens' embeddings."""
    tokens = np.array(pairs, np.int32)
    key = hashlib.sha256(b"sums" + tokens.tobytes()).digest()
    return MediaSpan(start, len(tokens), key, tokens, (len(tokens), 1))


class Qwen3Utterance:
    """An Utterance. ``padding``: the embedding that is added to every frame's."""

    def __init__(
        self, predictor: CodePredictor, choose: Choose, marks: Marks, padding: Floats
    ) -> None:
        self._predictor, self._choose, self._marks = predictor, choose, marks
        self._padding = padding

    def next(self, state: Floats, token: int) -> Frame | None:
        first = token - self._marks.code_0
        if token == self._marks.code_eos or first < 0:
            return None
        codes, embedding = self._predictor.predict(state, first, self._choose)
        return Frame(codes, embedding + self._padding)


class Qwen3Speaker:
    """A Speaker."""

    rate = RATE
    mask: FixedMask | None = None

    def __init__(
        self,
        gguf: GGUFFile,
        weights: EncoderWeights,
        device: Device,
        programs: Programs,
    ) -> None:
        tower = read_tower(gguf, weights)
        self._predictor = CodePredictor(tower, weights, device, programs)
        self._vocoder = Code2Wav(weights, device, programs)
        self.frame, self.reach = self._vocoder.frame, self._vocoder.reach
        self.width = self._predictor.width
        self._model: tuple[Marks, Floats] | None = None

    def warm_up(self) -> None:
        self.sound([np.zeros(self._predictor.n_codes, np.int32)] * FIRST, 0)

    def join(self, tokenizer: Tokenizer, embeddings: Embeddings) -> None:
        marks = read_marks(tokenizer)
        codes = range(marks.code_0, marks.code_0 + self._vocoder.n_first_codes)
        self.mask = FixedMask([*codes, marks.code_eos], tokenizer.n_vocab)
        self._model = marks, embeddings([marks.text_pad])[0]

    def begin(self, request: Request) -> Qwen3Utterance:
        assert self._model is not None
        temperature = SAMPLING.temperature if request.sampling.temperature > 0 else 0.0
        choose = chooser(generator(request), temperature, SAMPLING.top_k)
        return Qwen3Utterance(self._predictor, choose, *self._model)

    def sound(self, features: Sequence[Features], n_before: int) -> Floats:
        return self._vocoder.sound(features, n_before)
