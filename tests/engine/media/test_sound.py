"""Decoding of sound files: formats, channels, rates, limits, damage."""

from __future__ import annotations

import io

import numpy as np
import pytest
import soundfile
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_serve.engine.errors import MediaError
from gguf_serve.engine.media.sound import decode_sound

RATE = 16000
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(RATE) / RATE)).astype(np.float32)


def encoded(samples: np.ndarray, format: str, rate: int = RATE, **options: str) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=format, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("format", "error"), [("WAV", 1e-4), ("FLAC", 1e-4), ("OGG", 0.05), ("MP3", 0.1)]
)
def test_formats(format: str, error: float) -> None:
    found = decode_sound(encoded(TONE, format))
    assert abs(len(found) - len(TONE)) < 3000  # MP3 has a delay
    if len(found) == len(TONE):
        assert np.abs(found - TONE)[100:-100].max() < error


def test_channels_are_averaged_and_rates_converted() -> None:
    n = 44100
    tone = 0.5 * np.sin(2 * np.pi * 440 * np.arange(n) / n)
    found = decode_sound(encoded(np.stack([2 * tone, 0 * tone], axis=1), "WAV", 44100))
    assert len(found) == RATE
    assert np.abs(found - TONE)[200:-200].max() < 1e-3


def test_limits() -> None:
    with pytest.raises(MediaError, match=r"longer than the limit of 0\.5 seconds"):
        decode_sound(encoded(TONE, "WAV"), max_seconds=0.5)
    with pytest.raises(MediaError, match="has only 10 samples at 16000 Hz"):
        decode_sound(encoded(TONE[:10], "WAV"))


@pytest.mark.parametrize("data", [b"", b"RIFF", b"no sound at all"])
def test_what_is_no_sound(data: bytes) -> None:
    with pytest.raises(MediaError, match="cannot be decoded"):
        decode_sound(data)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(["WAV", "FLAC", "OGG", "MP3"]), st.data())
def test_damage_is_an_error_or_a_sound(format: str, data: st.DataObject) -> None:
    whole = bytearray(encoded(TONE[:2000], format))
    for _ in range(data.draw(st.integers(1, 8))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = decode_sound(bytes(whole[: data.draw(st.integers(0, len(whole)))]), 10.0)
    except MediaError:
        return
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
