"""What has been said of a request so far: frames, and the samples that were made of them."""

from __future__ import annotations

import hashlib

import numpy as np

from gguf_serve.engine.media.span import first_id
from gguf_serve.engine.speech.speaker import (
    Features,
    FixedMask,
    Floats,
    Frame,
    Speaker,
    Utterance,
)

FIRST, MOST = 4, 16  # frames whose samples are made at once, at the beginning and later
LOUDEST = 32767  # of 16 bits


class Voicing:
    """Of one request. Lives in the engine's thread."""

    def __init__(self, speaker: Speaker, utterance: Utterance) -> None:
        self._speaker, self._utterance = speaker, utterance
        self._features: list[Features] = []  # as far as the vocoder still reads them
        self._n_sounded = 0  # of these
        self._n_made = FIRST  # at once, so far at most
        self.token: int | None = None  # what the last step has sampled, and no frame is of yet

    @property
    def mask(self) -> FixedMask | None:
        """See Speaker."""
        return self._speaker.mask

    def next(self, state: Floats) -> Frame | None:
        """The frame of a step with this hidden state; None: all has been said."""
        token, self.token = self.token, None
        assert token is not None
        frame = self._utterance.next(state, token)
        if frame is not None:
            self._features.append(frame.features)
        return frame

    def samples(self, *, last: bool = False) -> bytes:
        """Samples of frames that have none yet, if it is time to make some: 16 bits each,
        little-endian. ``last``: of all."""
        n = len(self._features) - self._n_sounded
        if not n or (n < self._n_made and not last):
            return b""
        found = self._speaker.sound(self._features, self._n_sounded)
        self._n_made = min(2 * self._n_made, MOST)
        del self._features[: -self._speaker.reach or None]
        self._n_sounded = len(self._features)
        return np.round(found * LOUDEST).astype("<i2").tobytes()


def stand_in(frame: Frame) -> int:
    """What stands for a frame among the tokens of its sequence: a negative number that no other
    frame has."""
    return first_id(hashlib.sha256(frame.embedding.tobytes()).digest())
