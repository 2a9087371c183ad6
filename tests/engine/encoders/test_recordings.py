"""Which recordings an encoder keeps."""

from __future__ import annotations

import gc
import weakref
from types import SimpleNamespace
from typing import Any

import pytest

from gguf_serve.engine.encoders import audio
from gguf_serve.engine.encoders.audio_file import AudioFile
from gguf_serve.engine.encoders.recordings import MAX_RECORDINGS, Recordings


@pytest.mark.parametrize("most", [MAX_RECORDINGS, 6])
def test_the_sizes_used_last_are_kept(most: int) -> None:
    made: list[int] = []

    def record(size: int) -> str:
        made.append(size)
        return f"of {size}"

    recordings = Recordings(record, most)
    sizes = list(range(most))
    assert [recordings.of(size) for size in sizes] == [f"of {size}" for size in sizes]
    recordings.of(0)  # so that 1 is the least recently used one
    recordings.of(100)
    assert made == [*sizes, 100]
    recordings.of(0)
    recordings.of(1)
    assert made == [*sizes, 100, 1]


def test_sounds_of_many_lengths_take_no_more_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another recording is gone before a new one is made."""
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most = 0

    class Graph:
        def __init__(self, *arguments: object) -> None:
            nonlocal most
            alive.add(self)
            most = max(most, len(alive))

        def finish(self, out: object) -> None:
            pass

    monkeypatch.setattr(audio, "Graph", Graph)
    monkeypatch.setitem(
        audio.BUILD, "qwen3a", lambda graph, spec, n_frames, like: SimpleNamespace(width=n_frames)
    )
    spec = AudioFile("qwen3a", 40, 2, 2, 1e-5, 128, 1)
    nothing: Any = None
    encoder = audio.AudioEncoder(spec, nothing, nothing, nothing)
    gc.disable()
    try:
        assert [encoder.warm_up(n) for n in range(100, 3000, 100)] == list(range(100, 3000, 100))
    finally:
        gc.enable()
    assert most == MAX_RECORDINGS
