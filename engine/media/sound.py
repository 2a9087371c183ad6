"""Sound files to samples: one channel at 16 kHz, within limits.

libsndfile decodes (WAV, FLAC, OGG, MP3), soxr resamples. What cannot be decoded is a MediaError
whose text says why.
"""

from __future__ import annotations

import io

import numpy as np
import numpy.typing as npt
import soundfile
import soxr

from engine.errors import MediaError
from engine.media.limits import MediaLimits
from engine.media.mel import SAMPLE_RATE

MIN_SECONDS = 0.01
BLOCK = 1 << 20  # frames decoded at a time

Floats = npt.NDArray[np.float32]


def decode_sound(data: bytes, max_seconds: float = MediaLimits().max_seconds) -> Floats:
    """float32 [samples] at 16 kHz in -1 to 1; MediaError for anything that is no sound."""
    try:
        with soundfile.SoundFile(io.BytesIO(data)) as file:
            rate = file.samplerate
            samples = _mono(file, int(max_seconds * rate), max_seconds)
    except soundfile.LibsndfileError as error:
        raise MediaError(f"the sound cannot be decoded: {error.error_string}") from None
    except (RuntimeError, ValueError, TypeError, MemoryError) as error:
        raise MediaError(f"the sound cannot be decoded: {error}") from error
    if len(samples) < MIN_SECONDS * rate:
        raise MediaError(f"the sound has only {len(samples)} samples at {rate} Hz")
    if rate != SAMPLE_RATE:
        samples = soxr.resample(samples, rate, SAMPLE_RATE)
    return np.nan_to_num(np.asarray(samples, np.float32), posinf=0.0, neginf=0.0)


def _mono(file: soundfile.SoundFile, limit: int, max_seconds: float) -> Floats:
    """The mean of the channels; a header's length is not believed."""
    blocks: list[Floats] = []
    n = 0
    while len(block := file.read(BLOCK, dtype="float32", always_2d=True)):
        n += len(block)
        if n > limit:
            raise MediaError(f"the sound is longer than the limit of {max_seconds:g} seconds")
        blocks.append(block.mean(axis=1))
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
