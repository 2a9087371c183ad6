"""The log: to stderr, and to a file that may not always be there to be written."""

from __future__ import annotations

import logging
import sys
import time

from gguf_serve.server.configure import SettingsError, reason
from gguf_serve.server.options.settings import Settings

FORMAT = "%(asctime)s %(levelname)s %(message)s"
SILENCE = 60.0  # seconds between two lines that say that something cannot be written

log = logging.getLogger("server")


class LogFile(logging.FileHandler):
    """A file without which the server goes on, for instance when the disk is full: ``told`` gets
    a line about it."""

    def __init__(self, path: str, told: logging.Handler) -> None:
        super().__init__(path, encoding="utf-8", errors="backslashreplace")
        self._told = told
        self._said = -SILENCE

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            return super().handleError(record)
        if time.monotonic() - self._said > SILENCE:
            self._said = time.monotonic()
            message = f"--log-file: cannot write {self.baseFilename}: {reason(error)}"
            self._told.handle(log.makeRecord(log.name, logging.WARNING, "", 0, message, (), None))
        return None


class Stderr(logging.StreamHandler):  # type: ignore[type-arg]
    """stderr; when that cannot be written there is nobody left to be told."""

    def __init__(self) -> None:
        super().__init__(sys.stderr)

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class Seldom(logging.Filter):
    """Lets a message pass once in a while: those that a client can cause would fill the disk."""

    def __init__(self) -> None:
        super().__init__()
        self._said: dict[str, float] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        if record.levelno != logging.WARNING:
            return True
        now = time.monotonic()
        if now - self._said.get(record.msg, -SILENCE) < SILENCE:
            return False
        self._said[record.msg] = now
        return True


def set_up_logging(settings: Settings) -> None:
    """SettingsError if the file cannot be made."""
    stderr = Stderr()
    handlers: list[logging.Handler] = [stderr]
    if settings.log_file is not None:
        try:
            handlers.append(LogFile(settings.log_file, stderr))
        except OSError as error:
            message = f"--log-file: cannot write {settings.log_file}: {reason(error)}"
            raise SettingsError(message) from None
    level = logging.DEBUG if settings.verbose else logging.INFO
    logging.basicConfig(level=level, format=FORMAT, handlers=handlers, force=True)
    for name in (
        ("uvicorn.error", "server", "gguf_serve.server.http.stream") if not settings.verbose else ()
    ):
        logging.getLogger(name).addFilter(Seldom())
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).setLevel(logging.INFO if settings.verbose else logging.WARNING)
