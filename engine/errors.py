"""The errors that a caller of the engine can act on."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

log = logging.getLogger(__name__)
# MemoryError: where a file has a size of which nobody can have as much, NumPy raises it.
FAULTS = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)


class EngineError(Exception):
    """Anything the engine refuses or cannot do; the message is for a person."""


class ModelError(EngineError):
    """The model file cannot be served: malformed, truncated or of an unknown kind."""


class RequestError(EngineError):
    """A request is not acceptable; the message names the offending value."""


class NotFiniteError(EngineError):
    """What the model computes for a request is NaN or infinite."""


class TooManyTokensError(RequestError):
    """A text has more tokens than ``most``: ``n_tokens`` at least."""

    def __init__(self, n_tokens: int, most: int) -> None:
        super().__init__(f"the text has at least {n_tokens} tokens, more than {most}")
        self.n_tokens = n_tokens
        self.most = most


class ContextOverflowError(RequestError):
    """The prompt does not fit the context of a slot; ``at_least``: its end was not counted."""

    def __init__(self, n_prompt_tokens: int, n_ctx: int, at_least: bool = False) -> None:
        super().__init__(
            f"request ({'at least ' if at_least else ''}{n_prompt_tokens} tokens) exceeds the "
            f"available context size ({n_ctx} tokens), try increasing it"
        )
        self.n_prompt_tokens = n_prompt_tokens
        self.n_ctx = n_ctx


class EngineStoppedError(EngineError):
    """The engine has ended, or is ending, and takes no further requests."""


class StageLostError(EngineError):
    """Another process that has a part of the model is gone."""


class MediaError(RequestError):
    """An image or a sound that cannot be used; the text says why."""


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Whatever is wrong with a file that is read here is told as a ModelError that names it."""
    with refusing(path):
        try:
            yield
        except ModelError as error:
            if str(path) in str(error):
                raise
            raise ModelError(f"{path}: {error}") from error


@contextmanager
def refusing(path: Path) -> Iterator[None]:
    """Faults are the file's: sizes of which nobody has thought, since no such model is known."""
    try:
        yield
    except FAULTS as error:
        log.debug("%s cannot be loaded", path, exc_info=True)
        kind = type(error).__name__
        raise ModelError(f"{path}: inconsistent metadata or tensors ({kind}: {error})") from error
