"""Samples to sound files, piece by piece, so that they can be heard while they are made.

libsndfile writes MP3, Opus and FLAC, FFmpeg AAC. What a file's beginning says of its length is
unknown when that is sent: zero, and in WAV the largest number, as of whatever else is streamed.
"""

from __future__ import annotations

import io
import struct
from typing import Protocol

import soundfile

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.media.adts import AdtsFile
from gguf_serve.engine.media.tempo import Tempo

UNKNOWN = 0xFFFFFFFF  # bytes: more than there will be
COMPRESSED = {
    "mp3": ("MP3", "MPEG_LAYER_III"),
    "opus": ("OGG", "OPUS"),
    "flac": ("FLAC", "PCM_16"),
}  # libsndfile's formats and subtypes
AAC = "aac"
# At a rate that varies, a decoder would take the silence at the beginning for the rate of all, and
# the file for a shorter one; its header that says otherwise is written last. 80 kbit/s at 24 kHz.
CONSTANT = {"compression_level": 0.5, "bitrate_mode": "CONSTANT"}
PLAIN = ("wav", "pcm")  # whose samples are not touched


class SoundWriter:
    """A file of one channel, whose bytes are handed out as soon as they are known."""

    def __init__(self, format: str, rate: int, speed: float = 1.0) -> None:
        """``format``: AAC, or one of COMPRESSED or PLAIN; ``rate``: samples a second; ``speed``:
        how fast it is heard. RequestError for a rate that the format does not have, or where there
        is no AAC or no other speed, for want of PyAV."""
        self._tempo = None if speed == 1 else Tempo(speed, rate)
        self._head = wav_header(rate) if format == "wav" else b""
        self._outlet = _Outlet()
        self._file = None if format in PLAIN else _opened(self._outlet, format, rate)

    def write(self, pcm: bytes) -> bytes:
        """What the file goes on with after these samples, of 16 bits each, little-endian; maybe
        nothing yet."""
        return self._encoded(pcm if self._tempo is None else self._tempo.write(pcm))

    def end(self) -> bytes:
        """The rest of the file."""
        rest = self._encoded(b"" if self._tempo is None else self._tempo.end())
        if self._file is not None:
            self._file.close()
        return rest + self._outlet.take()

    def _encoded(self, pcm: bytes) -> bytes:
        if self._file is None:
            head, self._head = self._head, b""
            return head + pcm
        if pcm:
            self._file.buffer_write(pcm, "int16")
        return self._outlet.take()


def wav_header(rate: int) -> bytes:
    """Of one channel of 16 bits and unknown length: RIFF with its two chunks."""
    width = 2  # bytes of a sample
    form = struct.pack("<HHIIHH", 1, 1, rate, rate * width, width, 8 * width)
    riff = b"RIFF" + struct.pack("<I", UNKNOWN) + b"WAVE"
    return (
        riff + b"fmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", UNKNOWN)
    )


class _File(Protocol):
    """What encodes: as much of soundfile's SoundFile as is needed here."""

    def buffer_write(self, data: bytes, dtype: str) -> None: ...
    def close(self) -> None: ...


def _opened(outlet: _Outlet, format: str, rate: int) -> _File:
    if format == AAC:
        return AdtsFile(outlet, rate)
    name, subtype = COMPRESSED[format]
    options = CONSTANT if format == "mp3" else {}
    try:
        file: _File = soundfile.SoundFile(outlet, "w", rate, 1, subtype, format=name, **options)
    except soundfile.LibsndfileError as error:
        raise RequestError(
            f"{format} cannot have {rate} samples a second: {error.error_string}"
        ) from None
    return file


class _Outlet:
    """The file that an encoder writes, of which only what is new is kept.

    When it ends, libsndfile goes back to its beginning to write how long it is. That has been
    handed out by then, and what is written over it is dropped.
    """

    def __init__(self) -> None:
        self._new = bytearray()
        self._at = self._end = 0

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        self._at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._end}[whence]
        return self._at

    def tell(self) -> int:
        return self._at

    def write(self, data: bytes) -> int:
        self._new += data[max(self._end - self._at, 0) :]
        self._at += len(data)
        self._end = max(self._end, self._at)
        return len(data)

    def take(self) -> bytes:
        found = bytes(self._new)
        self._new.clear()
        return found
