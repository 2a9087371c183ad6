"""The log: to stderr, or as JSON to stdout, and to a file that may not always be there."""

from __future__ import annotations

import json
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


class Console(logging.StreamHandler):  # type: ignore[type-arg]
    """stderr or stdout; when that cannot be written there is nobody left to be told."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


class JsonLines(logging.Formatter):
    """An object on each line, with llama-server's names."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        line = {"type": "log", "time": record.created, "level": record.levelname.lower()}
        return json.dumps(line | {"msg": message})


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
    console = Console(sys.stdout if settings.log_jsonl else sys.stderr)
    handlers: list[logging.Handler] = [console]
    if settings.log_file is not None:
        try:
            handlers.append(LogFile(settings.log_file, console))
        except OSError as error:
            message = f"--log-file: cannot write {settings.log_file}: {reason(error)}"
            raise SettingsError(message) from None
    lowest = level(settings)
    logging.basicConfig(level=lowest, format=FORMAT, handlers=handlers, force=True)
    if settings.log_jsonl:
        for handler in handlers:
            handler.setFormatter(JsonLines())
    verbose = lowest == logging.DEBUG
    for name in ("uvicorn.error", "server", "gguf_serve.server.http.stream") if not verbose else ():
        logging.getLogger(name).addFilter(Seldom())
    for name in ("uvicorn", "asyncio"):
        logging.getLogger(name).setLevel(max(lowest, logging.INFO if verbose else logging.WARNING))


def level(settings: Settings) -> int:
    """The least level of the log, of logging's."""
    if settings.log_disable:
        return logging.CRITICAL + 1
    if settings.verbose or settings.log_verbosity > 3:
        return logging.DEBUG
    return {3: logging.INFO, 2: logging.WARNING}.get(settings.log_verbosity, logging.ERROR)
