"""The tools of --tools, as a program: it reads {"tool", "params"} and writes what it finds.

A process of its own, of the standard library alone: a regular expression that takes for ever, or a
file that is a device, holds nobody else up, and is ended with it. Names, arguments and limits are
those of llama-server's tools.
"""

from __future__ import annotations

import json
import os
import platform
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MOST_TEXT = 16 * 2**10  # characters of an answer
MOST_FOUND = 100  # files, or lines
MOST_SECONDS = 60  # of a command
# Folders that are not searched: they are large, and nobody's own.
JUNK = frozenset(
    (
        ".git", ".svn", ".hg", "node_modules", "__pycache__", ".venv", "venv", "dist", "build",
        "target", ".cache", ".idea", ".vscode",
    )
)  # fmt: skip


class ToolError(Exception):
    """What is wrong with a call, in words for the model."""


def read_file(path: str, start_line: int = 1, end_line: int = -1, append_loc: bool = False) -> str:
    """``end_line`` -1: to the end."""
    if not Path(path).is_file():
        raise ToolError(f"there is no such file: {path}")
    size = Path(path).stat().st_size
    if size > MOST_TEXT and end_line == -1:
        raise ToolError(
            f"file too large ({size} bytes, max {MOST_TEXT}). Use start_line/end_line to read a "
            "portion."
        )
    lines, n_characters = [], 0
    with open(path, encoding="utf-8", errors="replace") as file:
        for number, line in enumerate(file, 1):
            if number < start_line:
                continue
            if end_line != -1 and number > end_line:
                break
            lines.append(f"{number}→{line}" if append_loc else line)
            n_characters += len(lines[-1])
            if n_characters > MOST_TEXT:
                return "".join(lines)[:MOST_TEXT] + "\n[output truncated]"
    return "".join(lines)


def file_glob_search(
    path: str,
    include: str = "**",
    exclude: str = "",
    type: str = "file",
    max_depth: int = 0,
    limit: int = MOST_FOUND,
) -> str:
    if type not in ("file", "dir", "all"):
        raise ToolError(f'invalid type: {type} (expected "file", "dir" or "all")')
    if limit < 1:
        raise ToolError(f"invalid limit: {limit} (expected 1 or more)")
    wanted, unwanted = glob(include), glob(exclude) if exclude else None
    found = [
        name
        for name in entries(Path(path), max_depth)
        if type == "all" or name.endswith("/") == (type == "dir")
        if wanted.fullmatch(name.rstrip("/"))
        and not (unwanted and unwanted.fullmatch(name.rstrip("/")))
    ]
    shown = found[: min(limit, MOST_FOUND)]
    return "".join(f"{name}\n" for name in shown) + total(len(found), len(shown))


def grep_search(
    path: str,
    pattern: str,
    include: str = "**",
    exclude: str = "",
    return_line_numbers: bool = False,
    literal: bool = False,
    ignore_case: bool = False,
    context_lines: int = 0,
) -> str:
    try:
        searched = re.compile(
            re.escape(pattern) if literal else pattern, re.IGNORECASE if ignore_case else 0
        )
    except re.error as error:
        raise ToolError(f"invalid regex: {error}") from None
    base, wanted, unwanted = Path(path), glob(include), glob(exclude) if exclude else None
    names = [""] if base.is_file() else [n for n in entries(base, 0) if not n.endswith("/")]
    found: list[str] = []
    n_found = 0
    for name in names:
        if name and (not wanted.fullmatch(name) or (unwanted and unwanted.fullmatch(name))):
            continue
        file = base / name
        if not (file.is_file() and os.access(file, os.R_OK)):
            continue
        lines = file.read_text("utf-8", "replace").splitlines()
        for at, line in enumerate(lines):
            if not searched.search(line):
                continue
            n_found += 1
            if n_found > MOST_FOUND:
                continue
            near = range(max(at - context_lines, 0), min(at + context_lines + 1, len(lines)))
            for number in near:
                mark = ":" if number == at else "-"
                place = f"{number + 1}{mark}" if return_line_numbers or context_lines else ""
                found.append(f"{name or path}{mark}{place}{lines[number]}\n")
    return ("".join(found))[:MOST_TEXT] + total(n_found, min(n_found, MOST_FOUND))


def exec_shell_command(command: str, timeout: int = 10, max_output_size: int = MOST_TEXT) -> str:
    """Output of both kinds together, and the exit code."""
    most = min(max_output_size, MOST_TEXT)
    process = subprocess.Popen(
        ["sh", "-c", command],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    assert process.stdout is not None
    late = threading.Event()

    def end() -> None:
        late.set()
        os.killpg(process.pid, signal.SIGKILL)  # what it has started, too

    timer = threading.Timer(min(timeout, MOST_SECONDS), end)
    timer.start()
    output = process.stdout.read(most + 1)
    while process.stdout.read(2**16):  # the rest is thrown away, else the command would wait
        pass
    process.wait()
    timer.cancel()
    text = output[:most].decode("utf-8", "replace")
    text += "\n[output truncated]" * (len(output) > most)
    text += f"\n[exit code: {process.returncode}]"
    return text + " [exit due to timed out]" * late.is_set()


def write_file(path: str, content: str) -> dict[str, Any]:
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    data = content.encode()
    Path(path).write_bytes(data)
    return {"result": "file written successfully", "path": path, "bytes": len(data)}


def edit_file(path: str, edits: list[dict[str, str]]) -> dict[str, Any]:
    """Each ``old_text`` is once in the file as it was, and they do not overlap."""
    before = Path(path).read_bytes().decode()
    places = []
    for number, edit in enumerate(edits):
        old = edit["old_text"]
        n_times = before.count(old) if old else 0
        if n_times != 1:
            raise ToolError(
                f"edits[{number}].old_text is {n_times} times in {path}: expected it once"
            )
        places.append((before.index(old), before.index(old) + len(old), edit["new_text"]))
    places.sort()
    parts, end = [], 0
    for start, stop, new in places:
        if start < end:
            raise ToolError(f"edits of {path} overlap: merge them into one")
        parts += [before[end:start], new]
        end = stop
    after = "".join([*parts, before[end:]])
    if after == before:
        raise ToolError("no changes made: the replacements are what was there")
    Path(path).write_bytes(after.encode())
    return {"result": "file edited successfully", "path": path, "edits_applied": len(places)}


def get_info() -> dict[str, Any]:
    return {"os": " ".join(platform.uname()), "cwd": os.getcwd()}


def entries(base: Path, max_depth: int) -> Iterator[str]:
    """Files, and folders with a slash, by their paths below ``base``; 0: as deep as it goes."""
    if not base.is_dir():
        raise ToolError(f"path does not exist or is not a directory: {base}")
    for folder, folders, files in os.walk(base):
        start = Path(folder).relative_to(base)
        folders[:] = sorted(name for name in folders if name not in JUNK)
        yield from sorted(
            [(start / name).as_posix() for name in files]
            + [f"{(start / name).as_posix()}/" for name in folders]
        )
        if max_depth and len(start.parts) + 1 >= max_depth:
            folders.clear()


def glob(pattern: str) -> re.Pattern[str]:
    """Without a slash it is the file's name, else the end of the path; ``**`` are any folders."""
    anchored = pattern == "**" or pattern.startswith(("**/", "/"))
    whole = pattern if anchored else f"**/{pattern}"
    parts = re.split(r"(\*\*/|\*\*|\*|\?)", whole.removeprefix("/"))
    meaning = {"**/": "(?:.*/)?", "**": ".*", "*": "[^/]*", "?": "[^/]"}
    return re.compile("".join(meaning.get(part, re.escape(part)) for part in parts), re.DOTALL)


def total(n_found: int, n_shown: int) -> str:
    more = f"[{n_shown} results limit reached. Narrow the search.]\n" if n_found > n_shown else ""
    return f"\n---\nTotal matches: {n_found}\n{more}"


TOOLS: tuple[Callable[..., str | dict[str, Any]], ...] = (
    read_file, file_glob_search, grep_search, exec_shell_command, write_file, edit_file, get_info,
)  # fmt: skip


def answer(tool: str, params: dict[str, Any]) -> dict[str, Any]:
    run = next(known for known in TOOLS if known.__name__ == tool)
    try:
        found = run(**params)
    except TypeError as error:
        return {"error": f"{tool}: wrong arguments: {error}"}
    except (ToolError, KeyError, ValueError) as error:
        return {"error": str(error)}
    except OSError as error:
        return {"error": f"{error.strerror}: {error.filename}"}
    return {"plain_text_response": found} if isinstance(found, str) else found


if __name__ == "__main__":
    json.dump(answer(**json.load(sys.stdin)), sys.stdout)
