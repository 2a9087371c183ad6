"""The tools of the host, each call in a process of its own as POST /tools runs it."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from gguf_serve.server.tools.host import NAMES, host_tools
from gguf_serve.server.tools.host_program import answer, glob

# No Python may run in a copy of the server, as with uvloop's own way to start a process.
FORKED = """
import asyncio, json, os, sys, uvloop
from gguf_serve.server.tools.host import host_tools

os.register_at_fork(after_in_child=lambda: os._exit(9))
(tool,) = host_tools(["get_info"])
print(json.dumps(uvloop.run(tool.run({}, sys.argv[1]))))
"""


def run(name: str, folder: Path, **arguments: Any) -> dict[str, Any]:
    (tool,) = host_tools([name])
    return asyncio.run(tool.run(arguments, str(folder)))


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    (tmp_path / "src" / "deep").mkdir(parents=True)
    (tmp_path / "node_modules").mkdir()
    for name in ("src/a.py", "src/deep/b.py", "c.txt", "node_modules/d.py"):
        (tmp_path / name).write_text("one\ntwo (2)\nthree\n")
    return tmp_path


def test_all_have_a_program_and_arguments() -> None:
    tools = host_tools(NAMES)
    assert [tool.name for tool in tools if tool.writes] == list(NAMES[-3:])
    for tool in tools:
        assert set(tool.parameters["required"]) <= set(tool.parameters["properties"])
        assert "wrong arguments" in answer(tool.name, {"no such": 1})["error"]


def test_files(tree: Path) -> None:
    def text(**found: Any) -> str:
        return str(found["plain_text_response"])

    lines = run("read_file", tree, path="c.txt", start_line=2, end_line=3, append_loc=True)
    assert text(**lines) == "2→two (2)\n3→three\n"
    found = text(**run("file_glob_search", tree, path=".", include="*.py"))
    assert found.splitlines()[:2] == ["src/a.py", "src/deep/b.py"]
    found = text(**answer("grep_search", {"path": str(tree / "src"), "pattern": r"t\w+ \(",
                                          "return_line_numbers": True}))  # fmt: skip
    assert "deep/b.py:2:two (2)\n" in found
    assert "Total matches: 2" in found
    edits = [{"old_text": "one", "new_text": "ONE"}, {"old_text": "three", "new_text": ""}]
    path = str(tree / "c.txt")
    assert answer("edit_file", {"path": path, "edits": edits})["edits_applied"] == 2
    assert (tree / "c.txt").read_text() == "ONE\ntwo (2)\n\n"
    assert answer("write_file", {"path": str(tree / "new" / "x"), "content": "é"})["bytes"] == 2
    assert run("get_info", tree)["cwd"] == str(tree)


@pytest.mark.skipif(sys.platform == "win32", reason="neither forks nor has uvloop")
def test_the_server_is_not_forked(tree: Path) -> None:
    command = [sys.executable, "-c", FORKED, str(tree)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert json.loads(said.stdout)["cwd"] == str(tree), said.stderr


def test_what_is_wrong_is_told(tree: Path) -> None:
    path = str(tree / "c.txt")
    edits = [{"old_text": "o", "new_text": ""}]
    for name, arguments, told in (
        ("read_file", {"path": "/no/such"}, "no such file: /no/such"),
        ("read_file", {"path": "/dev/zero"}, "no such file"),
        ("grep_search", {"path": path, "pattern": "("}, "invalid regex"),
        ("edit_file", {"path": path, "edits": edits}, "is 2 times in"),
        ("file_glob_search", {"path": path}, "not a directory"),
        ("write_file", {"path": f"{path}/x", "content": ""}, ""),
    ):
        assert told in answer(name, arguments)["error"]


def test_a_command_has_its_time_and_its_output_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", "secret")
    begun = time.monotonic()
    found = run("exec_shell_command", tmp_path, command="env; yes | head -c 999999; sleep 60",
                timeout=1)  # fmt: skip
    text = found["plain_text_response"]
    assert time.monotonic() - begun < 30
    assert "secret" not in text
    assert len(text) < 17000
    assert text.endswith("[exit code: -9] [exit due to timed out]")


@pytest.mark.parametrize(
    ("pattern", "path", "fits"),
    [("*.py", "a/b/c.py", True), ("b/*.py", "a/b/c.py", True), ("a/*.py", "a/b/c.py", False),
     ("**/b/**", "a/b/c/d", True), ("/a/*", "a/b", True), ("/b", "a/b", False), ("**", "x", True)],
)  # fmt: skip
def test_glob(pattern: str, path: str, fits: bool) -> None:
    assert bool(glob(pattern).fullmatch(path)) == fits
