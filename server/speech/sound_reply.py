"""The answer to a request for speech: sound that is sent as it is made."""

from __future__ import annotations

from starlette.responses import Response

from gguf_serve.engine.request import Sound
from gguf_serve.server.http.reply import Batch, StreamedReply
from gguf_serve.server.http.stream import raise_if_ended_early


class SoundReply(StreamedReply):
    """Begins with the first sound: whatever fails before that is an error of HTTP."""

    async def _response(self) -> Response | None:
        first: Batch = []
        async for batch in self.stream:
            for _, event in batch:
                raise_if_ended_early(event)
            first += batch
            if has_sound(batch):
                break
        return None if self.stream.gone else self._streamed(first)

    def _is_long(self, batch: Batch) -> bool:
        """To encode a second of sound takes some milliseconds."""
        return has_sound(batch)


def has_sound(batch: Batch) -> bool:
    return any(type(event) is Sound for _, event in batch)
