"""Sound files that are written in pieces are what they would be as a whole."""

from __future__ import annotations

import io
import sys
import wave
from typing import Any

import av
import numpy as np
import pytest

from gguf_serve.engine.errors import MediaError, RequestError
from gguf_serve.engine.media.sound import decode_sound
from gguf_serve.engine.media.sound_writer import AAC, COMPRESSED, PLAIN, SoundWriter, wav_header

RATE = 24000
SECONDS = 1.5
TONE = (0.5 * np.sin(2 * np.pi * 440 * np.arange(int(SECONDS * RATE)) / RATE)).astype(np.float32)
PCM = (TONE * 32767).astype("<i2").tobytes()
PIECE = 2 * 1920  # bytes of 80 ms


def written(format: str, rate: int = RATE, pcm: bytes = PCM) -> list[bytes]:
    """What each piece gives, and the end."""
    writer = SoundWriter(format, rate)
    pieces = [writer.write(pcm[at : at + PIECE]) for at in range(0, len(pcm), PIECE)]
    return [*pieces, writer.end()]


def decoded(format: str, data: bytes) -> Any:
    """Samples, by libsndfile, which does not know AAC."""
    if format != AAC:
        return decode_sound(data, rate=RATE)
    with av.open(io.BytesIO(data)) as file:
        assert (file.format.name, file.streams.audio[0].rate) == ("aac", RATE)
        return np.concatenate([frame.to_ndarray()[0] for frame in file.decode(audio=0)])


@pytest.mark.parametrize("format", [*COMPRESSED, AAC, "wav"])
def test_what_is_written_can_be_decoded(format: str) -> None:
    """MP3, Opus and AAC begin with some silence, which is what their encoders need."""
    found = decoded(format, b"".join(written(format)))
    late = len(found) - len(TONE)
    assert 0 <= late <= RATE // 10
    if format in ("wav", "flac"):
        assert np.abs(found - TONE).max() < 1e-4
    best = max(np.corrcoef(found[at : at + RATE], TONE[:RATE])[0, 1] for at in range(late + 1))
    assert best > 0.99


@pytest.mark.parametrize("format", [*COMPRESSED, AAC, *PLAIN])
def test_it_can_be_heard_before_its_end(format: str) -> None:
    """Whoever has had two thirds of the sound has at least a third of the file."""
    pieces = written(format)
    assert sum(map(len, pieces[: len(pieces) * 2 // 3])) > sum(map(len, pieces)) // 3


@pytest.mark.parametrize(("format", "n_bytes"), [("wav", 44), ("pcm", 0), ("mp3", 0), (AAC, 0)])
def test_nothing_said(format: str, n_bytes: int) -> None:
    assert len(b"".join(written(format, pcm=b""))) == n_bytes


@pytest.mark.parametrize("format", [*COMPRESSED, *PLAIN])
def test_another_speed(format: str) -> None:
    writer = SoundWriter(format, RATE, speed=2.0)
    data = writer.write(PCM) + writer.end()
    head = b"" if format != "pcm" else wav_header(RATE)
    found = decode_sound(head + data, rate=RATE)
    assert len(found) == pytest.approx(len(TONE) / 2, rel=0.15)


def test_pcm_is_what_it_was() -> None:
    assert b"".join(written("pcm")) == PCM


def test_pythons_own_reader_takes_the_wav() -> None:
    """Though its length says nothing, for it is not known when it is sent."""
    with wave.open(io.BytesIO(b"".join(written("wav")))) as file:
        assert (file.getframerate(), file.getnchannels(), file.getsampwidth()) == (RATE, 1, 2)
        assert file.readframes(len(TONE)) == PCM


@pytest.mark.parametrize(("format", "rate"), [("opus", 22050), (AAC, 22000)])
def test_a_rate_that_a_format_has_not(format: str, rate: int) -> None:
    with pytest.raises(RequestError, match=f"{format} cannot have {rate} samples a second"):
        SoundWriter(format, rate)


def test_there_is_no_aac_without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)
    with pytest.raises(MediaError, match=r"aac needs PyAV: pip install 'gguf-serve\[video\]'"):
        SoundWriter(AAC, RATE)
