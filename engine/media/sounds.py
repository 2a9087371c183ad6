"""What each projector type gets of a sound, and the text that the model expects around it.

A row of ``SOUNDS`` says how a sound is cut and made into inputs, and how many tokens come of one.
Sources: the models' published processors, as restated in llama.cpp's tools/mtmd (mtmd.cpp,
mtmd-audio.cpp); where the two disagree docs/multimodal.md says what is done here.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.media.mel import (
    MIMI_FRAME,
    NEMO_FFT,
    SAMPLE_RATE,
    SPEECH_RATE,
    WHISPER_FRAMES,
    WINDOW,
    Doubles,
    Floats,
    dots3_pieces,
    gemma4_pieces,
    granite_piece,
    mel_filters,
    mimi_piece,
    mimo_piece,
    nemo_piece,
    qwen3_pieces,
    sample_pieces,
    symmetric_hann,
    voice_piece,
    whisper_pieces,
)

WHOLE_SECONDS = 300.0  # of what is one input: a minute takes 200 MB at the first convolution
GRANITE_WINDOW, GRANITE_QUERIES = 15, 3  # frames that become so many tokens
VOICE_SECONDS = 30.0  # of a voice, as llama.cpp has it
SHORT = 100  # frames, of an input that is recorded at the start


def _whisper(samples: Floats, n_mels: int, like_llama_cpp: bool) -> list[Floats]:
    return whisper_pieces(samples, n_mels)


def _qwen3(samples: Floats, n_mels: int, like_llama_cpp: bool) -> list[Floats]:
    return qwen3_pieces(samples, n_mels)


def _dots3(samples: Floats, n_mels: int, like_llama_cpp: bool) -> list[Floats]:
    return dots3_pieces(samples, n_mels)


def _mimo(samples: Floats, n_mels: int, like_llama_cpp: bool) -> list[Floats]:
    return [mimo_piece(samples, n_mels)]


def _mimi(samples: Floats, n_mels: int, like_llama_cpp: bool) -> list[Floats]:
    return [mimi_piece(samples)]


def _voice(samples: Floats, n_mels: int, like_llama_cpp: bool) -> list[Floats]:
    return [voice_piece(samples, n_mels)]


def _samples(samples: Floats, n_frame: int, like_llama_cpp: bool) -> list[Floats]:
    return sample_pieces(samples, n_frame)


def _lfm2(samples: Floats, n_mels: int, like_llama_cpp: bool) -> list[Floats]:
    filters = mel_filters(n_mels, NEMO_FFT)
    return [nemo_piece(samples, symmetric_hann(WINDOW), filters, silent_end=True)]


def parakeet(window: Doubles, filters: Doubles) -> SoundInput:
    """Parakeet's, whose window [400] and filters [n_mels, 257] are in the file."""

    def pieces(samples: Floats, n_mels: int, like_llama_cpp: bool) -> list[Floats]:
        return [nemo_piece(samples, window, filters, silent_end=False)]

    return replace(SOUNDS["parakeet"], pieces=pieces)


def _granite(samples: Floats, n_mels: int, like_llama_cpp: bool) -> list[Floats]:
    return [granite_piece(samples, n_mels)]


def _pairs_halved(n: int, stack: int) -> int:
    """Tokens where a convolution and a mean halve the frames, of which some are stacked then."""
    return n // 4 // stack


def _quarter_in_groups(n: int, group: int) -> int:
    return -(-(_halved(n, 1) // 2) // group)


def _eighth(n: int, stack: int) -> int:
    return _halved(n, 3)


def _halved(n: int, times: int) -> int:
    """What convolutions of stride 2 leave of n frames."""
    for _ in range(times):
        n = (n + 1) // 2
    return n


class SoundInput(Struct, frozen=True):
    """How a type takes sounds.

    ``pieces(samples, n_mels, like_llama_cpp)``: the encoder's inputs, float32 [mels, frames] each.
    ``tokens(frames, stack)``: how many rows an input becomes. ``usual``: frames of an input that is
    recorded at the start. ``most_seconds``: that are one input, if it is not cut.
    ``rate``: samples a second.
    """

    pieces: Callable[[Floats, int, bool], list[Floats]]
    tokens: Callable[[int, int], int]
    before: str = ""
    after: str = ""
    usual: int = WHISPER_FRAMES
    most_seconds: float = math.inf
    rate: int = SAMPLE_RATE


SOUNDS: dict[str, SoundInput] = {
    "ultravox": SoundInput(_whisper, lambda n, stack: n // 2 // stack),
    "qwen2a": SoundInput(
        _whisper, lambda n, stack: n // 4 // stack, "<|audio_bos|>", "<|audio_eos|>"
    ),
    "voxtral": SoundInput(_whisper, _pairs_halved, "[BEGIN_AUDIO]"),
    "qwen3a": SoundInput(
        _qwen3, lambda n, stack: n // 100 * 13, "<|audio_start|>", "<|audio_end|>", SHORT
    ),
    "glma": SoundInput(_whisper, lambda n, stack: n // 2 // stack + 2),
    "meralion": SoundInput(_whisper, lambda n, stack: n // 2 // stack),
    "musicflamingo": SoundInput(_whisper, _pairs_halved, "<sound>"),
    "gemma4a": SoundInput(gemma4_pieces, lambda n, stack: _halved(n, 2), "<|audio>", "<audio|>"),
    "lfm2a": SoundInput(_lfm2, _eighth, usual=SHORT, most_seconds=WHOLE_SECONDS),
    "parakeet": SoundInput(_lfm2, _eighth, usual=SHORT, most_seconds=WHOLE_SECONDS),
    "granite_speech": SoundInput(
        _granite,
        lambda n, stack: -(-n // GRANITE_WINDOW) * GRANITE_QUERIES,
        usual=SHORT,
        most_seconds=WHOLE_SECONDS,
    ),
    "dots3note_a": SoundInput(_dots3, _eighth, "<|audio_comp_start|>", "<|audio_comp_end|>", SHORT),
    "mimo_audio": SoundInput(
        _mimo,
        _quarter_in_groups,
        "<|mimo_audio_start|>",
        "<|mimo_audio_end|>",
        SHORT,
        WHOLE_SECONDS,
        SPEECH_RATE,
    ),
    "pockettts_spkenc": SoundInput(
        _mimi,
        lambda n, stack: n // MIMI_FRAME,
        usual=MIMI_FRAME,
        most_seconds=VOICE_SECONDS,
        rate=SPEECH_RATE,
    ),
    "qwen3tts_spkenc": SoundInput(
        _voice, lambda n, stack: 1, usual=SHORT, most_seconds=WHOLE_SECONDS, rate=SPEECH_RATE
    ),
    "gemma4ua": SoundInput(_samples, lambda n, stack: n, "<|audio>", "<audio|>", SHORT),
}
