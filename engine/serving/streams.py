"""The streams that are being served, and the one way out for them."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

from gguf_serve.engine.completion.finite import Soundness
from gguf_serve.engine.completion.stream import Stream
from gguf_serve.engine.errors import EngineError, NotFiniteError, RequestError
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.scheduling.sequence import Sequence
from gguf_serve.engine.stats import Counters

log = logging.getLogger(__name__)


class Streams:
    """Streams by the id of their sequence. Lives in the engine's thread."""

    def __init__(
        self,
        scheduler: Scheduler,
        runner: Runner,
        counters: Counters,
        soundness: Soundness,
        keep: Callable[[Sequence], None] = lambda seq: None,
    ) -> None:
        """``keep``: called with each sequence that has ended."""
        self._scheduler, self._runner, self._counters = scheduler, runner, counters
        self._soundness, self._keep = soundness, keep
        self._by_id: dict[int, Stream] = {}

    def __len__(self) -> int:
        return len(self._by_id)

    def __iter__(self) -> Iterator[Stream]:
        return iter(self._by_id.values())

    def __contains__(self, stream: object) -> bool:
        """False for one that has ended."""
        return isinstance(stream, Stream) and self._by_id.get(stream.seq.id) is stream

    def __getitem__(self, id: int) -> Stream:
        return self._by_id[id]

    def get(self, id: int) -> Stream | None:
        """None for one that has ended."""
        return self._by_id.get(id)

    def add(self, stream: Stream) -> None:
        self._by_id[stream.seq.id] = stream
        self._scheduler.add(stream.seq)

    def attempt(self, stream: Stream, action: Callable[..., None], *args: object) -> None:
        """Do something for a stream; what goes wrong with it ends this request, and no other.

        Parameters that no token can be drawn with are not all known before; a fault of the
        device shows in the next forward, too.
        """
        try:
            action(*args)
        except Exception as error:
            if not isinstance(error, EngineError):
                log.exception("a request has failed")
            self.fail(stream, str(error) or type(error).__name__, isinstance(error, RequestError))
            if isinstance(error, NotFiniteError):
                self._soundness.note(stream.seq)

    def end(self, stream: Stream, reason: str, truncated: bool = False) -> None:
        """With what has been generated so far."""
        self._leave(stream)
        stream.finish(reason, truncated or stream.seq.n_dropped > 0)  # type: ignore[arg-type]

    def fail(self, stream: Stream, message: str, is_request: bool = False) -> None:
        """With an error; ``is_request``: the request is at fault."""
        self._leave(stream)
        stream.fail(message, is_request)

    def _leave(self, stream: Stream) -> None:
        """The one place where a request leaves the engine; idempotent."""
        self._scheduler.finish(stream.seq)
        if self._by_id.pop(stream.seq.id, None):
            self._counters.note_generation(stream.timings())
            self._keep(stream.seq)
        self._runner.compile_later()
