"""Sound files to samples: one channel at 16 kHz, or as the encoder wants it, within limits.

libsndfile decodes (WAV, FLAC, OGG, MP3), soxr resamples. What cannot be decoded is a MediaError
whose text says why.
"""

from __future__ import annotations

import io
import math
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from gguf_serve.engine.errors import MediaError
from gguf_serve.engine.media.limits import MediaLimits
from gguf_serve.engine.media.mel import SAMPLE_RATE

MIN_SECONDS = 0.01
RATES = (1000, 384000)  # Hz
BLOCK = 1 << 20  # samples decoded at a time

Floats = npt.NDArray[np.float32]


def decode_sound(
    data: bytes, max_seconds: float = MediaLimits().max_seconds, rate: int = SAMPLE_RATE
) -> Floats:
    """float32 [samples], ``rate`` a second, in -1 to 1; MediaError for what is no sound."""
    try:
        with _Forward(io.BytesIO(data)) as file:
            samples = _resampled(file, max_seconds, rate)
    except soundfile.LibsndfileError as error:
        raise MediaError(f"the sound cannot be decoded: {error.error_string}") from None
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise MediaError(f"the sound cannot be decoded: {error}") from error
    return np.nan_to_num(samples, posinf=0.0, neginf=0.0)


class _Forward(soundfile.SoundFile):  # type: ignore[misc]  # which has no types
    """A file that is read from its beginning on, and never looked for a place in: to find its end
    by that fails for FLAC that was streamed, whose header does not say how long it is."""

    def seekable(self) -> bool:
        return False


def _resampled(file: soundfile.SoundFile, max_seconds: float, to: int) -> Floats:
    """Block by block: a small file may hold many samples of a high rate."""
    rate, n = file.samplerate, 0
    if not RATES[0] <= rate <= RATES[1]:
        raise MediaError(f"the sound has a rate of {rate} Hz, not one of {RATES[0]} to {RATES[1]}")
    stream = None if rate == to else soxr.ResampleStream(rate, to, 1)
    found: list[Floats] = []
    for block in _mono(file):
        n += len(block)
        if n > max_seconds * rate:
            raise MediaError(f"the sound is longer than the limit of {max_seconds:g} seconds")
        found.append(block if stream is None else stream.resample_chunk(block))
    if n < MIN_SECONDS * rate:
        least = math.ceil(MIN_SECONDS * rate)
        raise MediaError(f"the sound has only {n} samples at {rate} Hz, expected {least} or more")
    if stream is not None:
        found.append(stream.resample_chunk(np.zeros(0, np.float32), last=True))
    return np.concatenate(found)


def _mono(file: soundfile.SoundFile) -> Iterator[Floats]:
    """The mean of the channels; a header's length is not believed."""
    n_frames = max(BLOCK // file.channels, 1)
    while len(block := file.read(n_frames, dtype="float32", always_2d=True)):
        yield block.mean(axis=1)
