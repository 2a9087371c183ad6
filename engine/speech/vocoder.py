"""Frames to samples, by two graphs: one that sees far back, of all frames that are given, and one
of convolutions, which see little, of those frames that are to be heard."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.recordings import Recordings
from gguf_serve.engine.speech.speaker import Floats

MAX_FAR = 8  # recordings: pieces of a speech come in five sizes, and the last in others


class Vocoder:
    """Lives in the engine's thread."""

    def __init__(
        self, far: Callable[[int], Graph], near: Callable[[int], Graph], *,
        frame: int, density: int, n_before: int,
    ) -> None:  # fmt: skip
        """``far``: the first graph for so many frames, whose output has ``density`` rows for each;
        ``near``: the second for so many of these rows, whose output are samples, ``frame`` of a
        frame, which depend on ``n_before`` rows before their own."""
        self.frame, self._density, self._n_before = frame, density, n_before
        self._far, self._near = Recordings(far, most=MAX_FAR), Recordings(near)

    def sound(self, inputs: Sequence[Floats], n_before: int) -> Floats:
        """Speaker.sound() of frames whose rows are the inputs of the first graph."""
        n = len(inputs[0]) - n_before
        n_made = 1 << (n - 1).bit_length()  # few sizes to record; what follows changes nothing
        padded = [np.pad(rows, ((0, n_made - n), (0, 0))) for rows in inputs]
        rows = self._far.of(n_before + n_made).run(padded)
        kept = rows[-(n_made * self._density + self._n_before) :]
        samples = self._near.of(len(kept)).run([kept])[:, 0]
        begin = len(samples) - n_made * self.frame
        found: Floats = np.clip(samples[begin : begin + n * self.frame], -1, 1)
        return found
