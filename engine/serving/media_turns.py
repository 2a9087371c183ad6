"""Images and sounds that running requests wait for, encoded between the steps."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.media.span import MediaSpan
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Sequence
from gguf_serve.engine.serving.streams import Streams

if TYPE_CHECKING:
    from gguf_serve.engine.encoders.encoder import MediaEncoder

log = logging.getLogger(__name__)
Floats = npt.NDArray[np.float32]


class MediaTurns:
    """Lives in the engine's thread, as the device does."""

    def __init__(self, encoder: MediaEncoder, scheduler: Scheduler, streams: Streams) -> None:
        self._encoder, self._scheduler, self._streams = encoder, scheduler, streams

    def encode_one(self) -> None:
        """Encode what a running request waits for, one between two steps.

        Others that show the same get it at once. A fault ends the request alone.
        """
        encoded = False
        for seq in self._scheduler.running.copy():
            while (missing := seq.missing_media) is not None:
                span = seq.request.media[missing]
                found = self._encoder.find(span)
                if found is None:
                    if encoded or (found := self._try_encode(seq, span)) is None:
                        break
                    encoded = True
                seq.embeddings[missing] = found

    def _try_encode(self, seq: Sequence, span: MediaSpan) -> Floats | None:
        """The embeddings of a span; None if that failed, which ends the request."""
        try:
            return self._encoder.encode(span)
        except Exception as error:
            log.exception("an image or a sound cannot be encoded")
            self._streams.fail(
                self._streams[seq.id], f"an image or a sound cannot be encoded: {error}"
            )
            return None
