"""An encoder of sounds: a projector file on a device, from spectrograms to embeddings."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from gguf_serve.engine.encoders.audio_file import AudioFile
from gguf_serve.engine.encoders.families import conformer, mimo, voice, whisper
from gguf_serve.engine.encoders.geometry import Floats
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.recordings import Recordings
from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.media.mel import QWEN3_UNIT
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

BUILD: dict[str, Callable[[Graph, AudioFile, int, bool], Rows]] = {
    "ultravox": whisper.ultravox,
    "qwen2a": whisper.qwen2a,
    "voxtral": whisper.voxtral,
    "qwen3a": whisper.qwen3a,
    "glma": whisper.glma,
    "meralion": whisper.meralion,
    "musicflamingo": whisper.music_flamingo,
    "gemma4a": conformer.gemma4,
    "gemma4ua": whisper.gemma4_unified,
    "lfm2a": conformer.lfm2,
    "parakeet": conformer.parakeet,
    "granite_speech": conformer.granite,
    "dots3note_a": whisper.dots3note,
    "mimo_audio": mimo.transformer,
    "pockettts_spkenc": voice.mimi,
    "qwen3tts_spkenc": voice.ecapa,
}


class After(NamedTuple):
    """What some encoders do with the rows that their graph has made."""

    on_host: Callable[[EncoderWeights, AudioFile, Floats], Floats]
    build: Callable[[Graph, AudioFile, int], Rows]  # the graph that reads what comes of it


AFTER = {
    "mimo_audio": After(mimo.embedded_codes, mimo.local),
    "qwen3tts_spkenc": After(voice.statistics, voice.voice),
}
# Convolved in two dimensions: rows are single values, frame by frame.
PLANES = ("gemma4a", "lfm2a", "parakeet")
# The same, mel by mel of so many frames; 0: of all.
CHUNKS = {"qwen3a": QWEN3_UNIT, "dots3note_a": 0}


def spectrograms(spec: AudioFile, samples: Floats, *, like_llama_cpp: bool = False) -> list[Floats]:
    """The encoder's inputs for a sound at 16 kHz, float32 [mels, frames] each; for Gemma 4 without
    an encoder the samples of a frame in the place of its mels."""
    return spec.input.pieces(samples, spec.n_mels, like_llama_cpp)


def as_rows(spec: AudioFile, mel: Floats) -> Floats:
    """A spectrogram [mels, frames] as the graph's input."""
    if spec.kind in PLANES:
        return mel.T.reshape(-1, 1)
    if spec.kind in CHUNKS:
        return whisper.chunks(mel, CHUNKS[spec.kind] or mel.shape[1])
    return mel.T


class AudioEncoder:
    """Encodes one spectrogram at a time. Lives in the engine's thread."""

    def __init__(
        self,
        spec: AudioFile,
        weights: EncoderWeights,
        device: Device,
        programs: Programs,
        *,
        like_llama_cpp: bool = False,
    ) -> None:
        self.spec = spec
        self._like_llama_cpp = like_llama_cpp
        self._weights, self._device, self._programs = weights, device, programs
        self._recordings = Recordings(self._record)  # by the number of frames
        self._after = AFTER.get(spec.kind)
        self._later = Recordings(self._record_later)  # by the number of rows

    def warm_up(self, n_frames: int) -> int:
        """Record an input of that length, which loads the weights; the output's width."""
        out = self._recordings.of(n_frames)[1]
        if self._after is None:
            return out.width
        nothing = np.zeros((1, out.width), np.float32)
        rows = self._after.on_host(self._weights, self.spec, nothing)
        return self._later.of(len(rows))[1].width

    def encode(self, mel: Floats) -> Floats:
        """Embeddings float32 [tokens, width] of a spectrogram [mels, frames]."""
        graph, _ = self._recordings.of(mel.shape[1])
        rows = graph.run([as_rows(self.spec, mel)])
        if self._after is None:
            return rows
        rows = self._after.on_host(self._weights, self.spec, rows)
        return self._later.of(len(rows))[0].run([rows])

    def _record(self, n_frames: int) -> tuple[Graph, Rows]:
        graph = Graph(self._weights, self._device, self._programs)
        out = BUILD[self.spec.kind](graph, self.spec, n_frames, self._like_llama_cpp)
        graph.finish(out)
        return graph, out

    def _record_later(self, n: int) -> tuple[Graph, Rows]:
        assert self._after is not None
        graph = Graph(self._weights, self._device, self._programs)
        out = self._after.build(graph, self.spec, n)
        graph.finish(out)
        return graph, out
