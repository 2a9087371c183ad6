"""Speech that is faster or slower and keeps its pitch, piece by piece: FFmpeg's filter ``atempo``
(waveform similarity overlap-add)."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from typing import Any

import numpy as np

from gguf_serve.engine.media.ffmpeg import pyav

SLOWEST = 0.5  # of one filter


class Tempo:
    """Samples of one channel, 16 bits each, little-endian, at another speed."""

    def __init__(self, speed: float, rate: int) -> None:
        """``rate``: samples a second. MediaError where PyAV is not installed."""
        self._av = pyav("another speed")
        self._rate, self._n = rate, 0  # samples that have come
        self._graph = graph = self._av.filter.Graph()
        source = graph.add_abuffer(
            sample_rate=rate, format="s16", layout="mono", time_base=Fraction(1, rate)
        )
        filters = [graph.add("atempo", str(factor)) for factor in factors(speed)]
        graph.link_nodes(source, *filters, graph.add("abuffersink")).configure()

    def write(self, pcm: bytes) -> bytes:
        """The samples that are ready after these; maybe none yet."""
        if pcm:
            samples = np.frombuffer(pcm, "<i2")[None]
            frame = self._av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
            frame.sample_rate, frame.pts = self._rate, self._n
            self._n += samples.shape[1]
            self._graph.push(frame)
        return b"".join(self._ready())

    def end(self) -> bytes:
        """The rest of them."""
        if not self._n:
            return b""
        self._graph.push(None)
        return b"".join(self._ready())

    def _ready(self) -> Iterator[bytes]:
        while True:
            try:
                frame: Any = self._graph.pull()
            except (self._av.error.BlockingIOError, self._av.error.EOFError):
                return
            yield frame.to_ndarray().astype("<i2").tobytes()


def factors(speed: float) -> list[float]:
    """Speeds of filters behind each other."""
    return [speed] if speed >= SLOWEST else [SLOWEST, *factors(speed / SLOWEST)]
