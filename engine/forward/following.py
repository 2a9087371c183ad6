"""The loop of a process that has some of a model's layers, behind the first stage."""

from __future__ import annotations

from typing import get_args

from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.forward.runner import Runner
from gguf_serve.engine.forward.stages import Done, OnPages, OnStates, StateMethod, Step
from gguf_serve.engine.model.wire import Wire


def follow(runner: Runner, wire: Wire) -> None:
    """Carry out what the first stage sends, until it goes; EngineError then, or for a fault, of
    which it is told."""
    pause: float | None = 0.0
    try:
        while True:
            match wire.receive(pause):
                case None:
                    pause = runner.use_pause()
                case Step(mode, filled):
                    runner.run_filled(mode, filled)
                    wire.send(Done())
                case OnPages(copies):
                    runner.copy_pages(copies)
                case OnStates(method, arguments) if method in get_args(StateMethod):
                    if getattr(runner.states, method)(*arguments) is False:
                        raise EngineError("no memory for a checkpoint")
    except Exception as error:
        wire.send(Done(str(error)))
        raise
