"""AAC in ADTS, a stream of frames that each say what they are, by FFmpeg's own encoder."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.media.ffmpeg import pyav

# Samples a second that a frame's header can name.
RATES = (96000, 88200, 64000, 48000, 44100, 32000, 24000, 22050, 16000, 12000, 11025, 8000, 7350)
BITS_PER_SAMPLE = 10 / 3  # 80 kbit/s at 24 kHz, as MP3 has here


class Outlet(Protocol):
    def write(self, data: bytes) -> int: ...


class AdtsFile:
    """A file of one channel, each frame of which is in ``outlet`` as soon as it is encoded."""

    def __init__(self, outlet: Outlet, rate: int) -> None:
        """``rate``: samples a second. RequestError for one that AAC does not have; MediaError
        where PyAV is not installed."""
        self._av = pyav("aac")
        if rate not in RATES:
            raise RequestError(f"aac cannot have {rate} samples a second")
        self._rate, self._n = rate, 0  # samples that have come
        self._file = self._av.open(outlet, "w", format="adts", options={"flush_packets": "1"})
        self._stream = self._file.add_stream("aac", rate=rate, layout="mono")
        self._stream.bit_rate = round(BITS_PER_SAMPLE * rate)

    def buffer_write(self, data: bytes, dtype: str) -> None:
        """Go on with samples, ``dtype`` ('int16') each."""
        samples = np.frombuffer(data, dtype)[None]
        frame = self._av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts = self._rate, self._n
        self._n += samples.shape[1]
        self._file.mux(self._stream.encode(frame))

    def close(self) -> None:
        """Write what the encoder has kept."""
        if self._n:
            self._file.mux(self._stream.encode(None))
        self._file.close()
