"""The tools of --tools: files and commands of this host, each call in a process of its own."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from gguf_serve.server.tools.tool import Outcome, Tool

PROGRAM = Path(__file__).with_name("host_program.py")
# Nothing else of the server's environment is its tools' business: it may hold keys.
KEPT = ("HOME", "LANG", "LOGNAME", "PATH", "SHELL", "TERM", "TMPDIR", "TZ", "USER")
SECONDS = 75.0  # for a call; a command has 60 at most
TEXT, WHOLE, FLAG = {"type": "string"}, {"type": "integer"}, {"type": "boolean"}
EDITS = {
    "type": "array",
    "items": {
        "type": "object",
        "properties": {"old_text": TEXT, "new_text": TEXT},
        "required": ["old_text", "new_text"],
    },
}


def schema(required: str, **properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": required.split()}


# Name, what is shown of it, what the model is told, arguments; the last ones change the host.
READING = (
    (
        "read_file", "Read file",
        "Read a file, or its lines from start_line to end_line (from 1 on, both included). "
        "append_loc puts the number of each line in front of it.",
        schema("path", path=TEXT, start_line=WHOLE, end_line=WHOLE, append_loc=FLAG),
    ),
    (
        "file_glob_search", "File search",
        "Find files below a directory by a glob pattern, such as *.py (by name) or src/**/*.py "
        "(by path). type: file, dir or all.",
        schema("path", path=TEXT, include=TEXT, exclude=TEXT, type=TEXT, max_depth=WHOLE,
               limit=WHOLE),
    ),
    (
        "grep_search", "Grep search",
        "Find the lines that match a regular expression (or a text, with literal) in a file or "
        "in the files below a directory.",
        schema("path pattern", path=TEXT, pattern=TEXT, include=TEXT, exclude=TEXT,
               return_line_numbers=FLAG, literal=FLAG, ignore_case=FLAG, context_lines=WHOLE),
    ),
    ("get_info", "Get Runtime Info", "The operating system and the current directory.", schema("")),
)  # fmt: skip
WRITING = (
    (
        "exec_shell_command", "Execute shell command",
        "Run a shell command, with its output and exit code as the answer. timeout: seconds, "
        "at most 60.",
        schema("command", command=TEXT, timeout=WHOLE, max_output_size=WHOLE),
    ),
    (
        "write_file", "Write file", "Write a file; folders above it are made.",
        schema("path content", path=TEXT, content=TEXT),
    ),
    (
        "edit_file", "Edit file",
        "Replace exact texts in a file; each old_text is there once, and they do not overlap.",
        schema("path edits", path=TEXT, edits=EDITS),
    ),
)  # fmt: skip
NAMES = tuple(row[0] for row in (*READING, *WRITING))


def host_tools(names: Iterable[str]) -> list[Tool]:
    """Those of NAMES."""
    rows = [(*row, False) for row in READING] + [(*row, True) for row in WRITING]
    return [
        Tool(name, display_name, description, parameters, partial(run, name), writes=writes)
        for name, display_name, description, parameters, writes in rows
        if name in set(names)
    ]


async def run(name: str, arguments: dict[str, Any], folder: str | None) -> Outcome:
    # Not by the event loop: uvloop forks this whole process, and in the copy Python clears away the
    # objects of threads that are not there. One that waits for such a thread does so for ever, and
    # the loop waits for the copy.
    try:
        child = subprocess.Popen(
            [sys.executable, "-I", str(PROGRAM)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=folder,
            env={key: os.environ[key] for key in KEPT if key in os.environ},
        )  # fmt: skip
    except OSError as error:
        return {"error": f"{name}: {error.strerror}: {error.filename}"}
    asked = json.dumps({"tool": name, "params": arguments}).encode()
    try:
        async with asyncio.timeout(SECONDS):
            output, errors = await asyncio.to_thread(child.communicate, asked)
    except TimeoutError:
        return {"error": f"{name}: has not ended within {SECONDS:g} seconds"}
    finally:
        child.kill()
    if child.returncode:
        return {"error": f"{name}: {errors.decode(errors='replace').strip()[-500:]}"}
    return dict(json.loads(output))
