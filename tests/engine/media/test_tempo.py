"""Another speed: as long as it should be, at the pitch that it was, and while it comes."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from gguf_serve.engine.errors import MediaError
from gguf_serve.engine.media.tempo import Tempo

RATE, PITCH = 24000, 440  # Hz
TONE = 16000 * np.sin(2 * np.pi * PITCH * np.arange(2 * RATE) / RATE)
PCM = TONE.astype("<i2").tobytes()
PIECE = 2 * 1920  # bytes of 80 ms


def pieces(speed: float, pcm: bytes = PCM) -> list[bytes]:
    tempo = Tempo(speed, RATE)
    found = [tempo.write(pcm[at : at + PIECE]) for at in range(0, len(pcm), PIECE)]
    return [*found, tempo.end()]


@pytest.mark.parametrize("speed", [0.25, 0.8, 1.5, 4.0])
def test_the_length_changes_and_the_pitch_does_not(speed: float) -> None:
    samples = np.frombuffer(b"".join(pieces(speed)), "<i2")
    assert len(samples) == pytest.approx(len(TONE) / speed, rel=0.03)
    part = samples[1000 : 1000 + RATE // 4]
    spectrum = np.abs(np.fft.rfft(part * np.hanning(len(part))))
    assert np.argmax(spectrum) * RATE / len(part) == pytest.approx(PITCH, abs=4)


def test_it_comes_piece_by_piece() -> None:
    found = pieces(1.5)
    assert sum(map(len, found[: len(found) // 2])) > sum(map(len, found)) // 3


def test_nothing_said() -> None:
    assert b"".join(pieces(2.0, b"")) == b""


def test_without_the_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match=r"another speed needs PyAV: pip install 'gguf-serve\[vid"):
        Tempo(1.5, RATE)
