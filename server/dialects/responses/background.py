"""Responses that run whether or not somebody listens, and whose streams can be taken up again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from gguf_serve.server.dialects.responses.translator import Responses
from gguf_serve.server.http.stream import EventStream
from gguf_serve.server.kept.run import Run
from gguf_serve.server.requests.service import Service


class Background(Run):
    """One response, and how it stands."""

    def __init__(
        self, service: Service, stream: EventStream, dialect: Responses, on_end: Callable[[], None]
    ) -> None:
        """As Run: begin, in a task."""
        self.response = dialect.state("queued")
        self._service, self._then = service, on_end
        service.n_in_background += 1
        super().__init__(
            stream, dialect, on_end=self._leave,
            on_cancel=lambda: [dialect.cancelled()], on_chunk=self._note,
        )  # fmt: skip

    def _leave(self) -> None:
        self._service.n_in_background -= 1
        self._then()

    def _note(self, event: Any) -> None:
        self.response = event.get("response", self.response)
