"""A stage that is gone has another one take its place, and what was served goes on.

Whoever is left keeps its weights. What was computed is gone with the stage, so every sequence is
paused, as where pages run out: the tokens that it has are computed anew, its sampler goes on where
it was, and its client sees a pause.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence

from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.forward.stages import Leading
from gguf_serve.engine.scheduling.scheduler import Scheduler
from gguf_serve.engine.serving.mailbox import Mailbox
from gguf_serve.engine.serving.steps import BegunStep
from gguf_serve.engine.serving.streams import Streams

log = logging.getLogger(__name__)
TRIES = 3  # losses under a request's steps, one after the other, until it is taken to be at fault
PATIENCE = 120.0  # seconds in which others are tried to be had
RETRY = 1.0  # seconds between two tries


class Recovery:
    """Belongs to the engine's thread, but for ``lose``; others are had in one of its own."""

    def __init__(
        self,
        replacements: Callable[[], Sequence[Leading]],
        runner: Runner,
        scheduler: Scheduler,
        mailbox: Mailbox,
    ) -> None:
        """``replacements``: other stages that have loaded what those have; EngineError if there
        are none."""
        self.reason = ""  # what is gone; "": nothing
        self._replacements = replacements
        self._runner, self._scheduler, self._mailbox = runner, scheduler, mailbox
        runner.on_loss(self.lose)
        # In a row, under steps of a sequence and with so many tokens of it.
        self._losses = Counter[tuple[int, int]]()
        self._thread: threading.Thread | None = None
        self._found: Sequence[Leading] | EngineError | None = None

    def lose(self, reason: str) -> None:
        """A stage is gone; from any thread, once or more."""
        self.reason = self.reason or reason
        self._mailbox.notify()

    @property
    def has_work(self) -> bool:
        return bool(self.reason) and (self._thread is None or self._found is not None)

    def work(self, begun: deque[BegunStep], streams: Streams) -> bool:
        """Do what is to be done now; whether steps can be computed. ``begun``: those under way.

        Raises EngineError if there are no other stages to be had.
        """
        if not self.reason:
            return True
        if self._thread is None:
            log.warning("%s; %d requests go on when it is back", self.reason, len(streams))
            self._runner.leave()
            self._give_up(begun, streams)
            self._thread = threading.Thread(target=self._replace, name="recovery", daemon=True)
            self._thread.start()
        if self._found is None:
            return False
        found, self._found, self._thread = self._found, None, None
        if isinstance(found, EngineError):
            raise EngineError(f"{self.reason}: {found}")
        self.reason = ""
        self._runner.start_over(found)
        self._runner.on_loss(self.lose)
        log.info("all stages are there again")
        return True

    def wait(self, is_enough: Callable[[], bool]) -> None:
        """Until there is something to do."""
        with self._mailbox.wake:
            self._mailbox.wake.wait_for(lambda: self.has_work or is_enough())

    def _give_up(self, begun: deque[BegunStep], streams: Streams) -> None:
        """Nothing is computed any more, and no logits come of the steps under way."""
        chunks = [chunk for step in begun for chunk in step.plan.chunks]
        begun.clear()
        for chunk in chunks:
            if chunk.outputs == "all":
                chunk.seq.n_scored = min(chunk.seq.n_scored, chunk.start)
        under_way = {chunk.seq.id: len(chunk.seq.tokens) for chunk in chunks}
        self._losses = Counter({key: self._losses[key] + 1 for key in under_way.items()})
        for (id, _), n in self._losses.items():
            if n > TRIES and (stream := streams.get(id)) is not None:
                streams.fail(stream, f"{self.reason}, and {TRIES} before it")
        for seq in self._scheduler.running.copy():
            self._scheduler.pause(seq)
        self._scheduler.take_saves()  # of states that are gone
        self._scheduler.cache.clear()
        if self._scheduler.checkpoints is not None:
            self._scheduler.checkpoints.clear()

    def _replace(self) -> None:
        until = time.monotonic() + PATIENCE
        while isinstance(found := self._tried(), EngineError):
            if self._mailbox.stopping or time.monotonic() > until:
                break
            log.warning("no other stages yet: %s", found)
            time.sleep(RETRY)
        self._found = found
        if self._mailbox.stopping and not isinstance(found, EngineError):
            for wire in found:  # nobody takes them
                wire.close()
        self._mailbox.notify()

    def _tried(self) -> Sequence[Leading] | EngineError:
        try:
            return self._replacements()
        except EngineError as error:
            return error
        except Exception as error:
            log.exception("stages cannot be replaced")
            return EngineError(str(error))
