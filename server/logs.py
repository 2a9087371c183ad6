"""The log: to stderr, or as JSON to stdout, and to a file that may not always be there.

A progress bar is drawn below its lines, so it belongs to what writes them to the terminal.
"""

from __future__ import annotations

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from typing import TextIO

from gguf_serve.server.configure import SettingsError, reason
from gguf_serve.server.options.settings import Settings

FORMAT = "%(asctime)s %(levelname)s %(message)s"
BAR_WIDTH = 40
CLEARED_LINE = "\r\x1b[2K"  # to its beginning, and erase it
# Loggers of what clients can cause many times over, beside the line of each request.
CAUSED_BY_CLIENTS = (
    "uvicorn.error", "gguf_serve.server.http.stream", "gguf_serve.server.http.connections",
)  # fmt: skip
SILENCE = 60.0  # seconds between two lines that say that something cannot be written

log = logging.getLogger("gguf_serve.server")


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

    def __init__(self, stream: TextIO) -> None:
        super().__init__(stream)
        self._bar = ""  # the line that is drawn below the log; "": none

    def emit(self, record: logging.LogRecord) -> None:
        if self._bar:
            self._draw("")
        super().emit(record)
        if self._bar:
            self._draw(self._bar)

    @contextmanager
    def bar(self, label: str) -> Iterator[Callable[[float], None]]:
        """A progress bar while the context lasts, drawn by what is yielded: it takes the fraction
        that is done, from any thread."""
        began = time.monotonic()

        def show(fraction: float) -> None:
            text = bar_text(label, fraction, time.monotonic() - began)
            text = text[: shutil.get_terminal_size().columns - 1]  # a line that wraps stays
            with self.lock or nullcontext():  # as emit() is called with it
                if text != self._bar:
                    self._bar = text
                    self._draw(text)

        show(0.0)
        try:
            yield show
        finally:
            with self.lock or nullcontext():
                self._bar = ""
                self._draw("")

    def _draw(self, text: str) -> None:
        with suppress(OSError):
            self.stream.write(CLEARED_LINE + text)
            self.stream.flush()

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def bar_text(label: str, fraction: float, seconds: float) -> str:
    """``label  60 %, 2 s [######----]``: how far it is, and since when."""
    done = int(min(max(fraction, 0.0), 1.0) * BAR_WIDTH)
    drawn = "#" * done + "-" * (BAR_WIDTH - done)
    return f"{label} {100 * done // BAR_WIDTH:3} %, {seconds:.0f} s [{drawn}]"


class JsonLines(logging.Formatter):
    """An object on each line, with llama-server's names."""

    def format(self, record: logging.LogRecord) -> str:
        message = record.getMessage()
        if record.exc_info:
            message += "\n" + self.formatException(record.exc_info)
        line = {"type": "log", "time": record.created, "level": record.levelname.lower()}
        return json.dumps(line | {"msg": message} | getattr(record, "fields", {}))


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
    for name in CAUSED_BY_CLIENTS if not verbose else ():
        logging.getLogger(name).addFilter(Seldom())
    # Libraries say a lot: pyopencl's every build, sse-starlette's every piece that is sent.
    logging.getLogger().setLevel(max(lowest, logging.WARNING))
    logging.getLogger("gguf_serve").setLevel(lowest)
    if verbose:
        logging.getLogger("uvicorn").setLevel(logging.INFO)


def level(settings: Settings) -> int:
    """The least level of the log, of logging's."""
    if settings.log_disable:
        return logging.CRITICAL + 1
    if settings.verbose or settings.log_verbosity > 3:
        return logging.DEBUG
    return {3: logging.INFO, 2: logging.WARNING}.get(settings.log_verbosity, logging.ERROR)
