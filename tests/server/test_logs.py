"""What is written to the terminal: log lines, and the progress bar below them."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys

from gguf_serve.server.logs import CLEARED_LINE, Console, JsonLines, bar_text

CHATTER = """
import logging
from gguf_serve.server.logs import set_up_logging
from gguf_serve.server.options.settings import Settings
set_up_logging(Settings(verbose=True))
for name in "gguf_serve.engine", "pyopencl", "sse_starlette.sse", "uvicorn.error":
    logging.getLogger(name).debug("debug of %s", name)
    logging.getLogger(name).warning("warning of %s", name)
"""


def record(text: str, **extra: object) -> logging.LogRecord:
    made = logging.LogRecord("x", logging.INFO, "", 0, text, (), None)
    made.__dict__ |= extra
    return made


def on_screen(written: str) -> list[str]:
    """The lines that a terminal shows in the end."""
    return [line.rpartition(CLEARED_LINE)[2] for line in written.split("\n")]


def test_log_lines_go_above_the_bar() -> None:
    stream = io.StringIO()
    console = Console(stream)
    with console.bar("Loading a.gguf") as draw:
        draw(0.5)
        console.handle(record("one"))
        draw(0.75)
        console.handle(record("two"))
        shown = on_screen(stream.getvalue())
        assert shown[:-1] == ["one", "two"]
        assert shown[-1] == f"Loading a.gguf  75 %, 0 s [{'#' * 30}{'-' * 10}]"
    assert on_screen(stream.getvalue()) == ["one", "two", ""]
    console.handle(record("three"))
    assert on_screen(stream.getvalue()) == ["one", "two", "three", ""]


def test_the_bar_is_drawn_when_it_changes() -> None:
    stream = io.StringIO()
    with Console(stream).bar("x") as draw:
        for _ in range(100):
            draw(0.5)
    assert stream.getvalue().count(CLEARED_LINE) <= 4


def test_a_bar_stays_within_its_brackets() -> None:
    assert bar_text("x", -1.0, 0.0).count("#") == 0
    assert bar_text("x", 2.0, 0.0) == f"x 100 %, 0 s [{'#' * 40}]"


def test_json_has_the_parts_of_a_request() -> None:
    line = json.loads(JsonLines().format(record("POST 200", fields={"status": 200})))
    assert (line["type"], line["msg"], line["status"]) == ("log", "POST 200", 200)


def test_verbose_without_the_chatter_of_libraries() -> None:
    done = subprocess.run(
        [sys.executable, "-c", CHATTER], capture_output=True, text=True, timeout=60, check=True
    )
    lines = [line.split(maxsplit=3)[3] for line in done.stderr.splitlines()]
    assert lines == [
        "debug of gguf_serve.engine",
        "warning of gguf_serve.engine",
        "warning of pyopencl",
        "warning of sse_starlette.sse",
        "warning of uvicorn.error",
    ]
