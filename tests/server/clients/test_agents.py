"""Coding agents as they are installed, each through a turn with a call of a tool.

The model is scripted: it calls a tool that does not exist, is told so by the agent, and answers.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.request import Event, Request
from gguf_serve.server.tools.mcp_config import McpServer
from gguf_serve.server.tools.toolbox import Toolbox

pytestmark = pytest.mark.slow
NOTES = """
import json, sys

TOOL = {"name": "look_up", "description": "d", "inputSchema": {"type": "object"}}
for line in sys.stdin:
    asked = json.loads(line)
    method = asked["method"]
    if method == "initialize":
        found = {"protocolVersion": asked["params"]["protocolVersion"],
                 "capabilities": {"tools": {}}, "serverInfo": {"name": "n", "version": "1"}}
    elif method == "tools/list":
        found = {"tools": [TOOL]}
    else:
        found = {"content": [{"type": "text", "text": "What the notes say"}]}
    if "id" in asked:
        print(json.dumps({"jsonrpc": "2.0", "id": asked["id"], "result": found}), flush=True)
"""
CALL = '<tool_call>\n{"name": "no_such_tool", "arguments": {"x": 1}}\n</tool_call>'
PATCH = {"input": "*** Begin Patch\n*** Add File: new.txt\n+written by a patch\n*** End Patch\n"}
ANSWER = "There is no such tool, it seems."


@pytest.fixture
def engine(fakes: Any) -> Any:
    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        prompt = bytes(id for id in request.prompt if id < 256)
        called = b"<|im_start|>tool: " in prompt
        yield from fakes.say(ANSWER if called else CALL)(request, cancelled)

    return engine_of(fakes, script)


def engine_of(fakes: Any, script: Any) -> Any:
    made = fakes.engine(script, n_ctx=10**7)
    made.chat_template = ChatTemplate(fakes.hermes)
    return made


def installed(folder: Path, package: str, program: str) -> str:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("needs npm")
    command = [npm, "install", "--silent", "--no-audit", "--no-fund", package]
    if subprocess.run(command, cwd=folder, timeout=280).returncode != 0:
        pytest.skip(f"npm cannot install {package}")
    return str(folder / "node_modules" / ".bin" / program)


def run(command: list[str], folder: Path, **environment: str) -> str:
    home = folder / "home"
    home.mkdir()
    done = subprocess.run(
        command,
        cwd=home,
        env=os.environ | {"HOME": str(home), **environment},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def turns(engine: Any) -> list[bytes]:
    """The prompts of the conversation, without those of the agent's smaller errands."""
    prompts = [bytes(id for id in request.prompt if id < 256) for request in engine.requests]
    return [prompt for prompt in prompts if b"Say something" in prompt]


def test_claude_code(serve: Any, engine: Any, tmp_path: Path) -> None:
    claude = installed(tmp_path, "@anthropic-ai/claude-code", "claude")
    output = run(
        [claude, "-p", "Say something", "--model", "any"],
        tmp_path,
        ANTHROPIC_BASE_URL=serve(engine),
        ANTHROPIC_API_KEY="none",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    )
    assert ANSWER in output
    first, second = turns(engine)[:2]
    assert b"no_such_tool" in second
    assert b"x-anthropic-billing-header" not in first
    system = first.partition(b"<|im_end|>")[0]
    assert second.startswith(system)  # so that the prefix is found in the cache


def run_codex(folder: Path, url: str, *more: str) -> str:
    codex = installed(folder, "@openai/codex", "codex")
    provider = f'{{name="local",base_url="{url}/v1",wire_api="responses",env_key="LOCAL_KEY"}}'
    options = ["-c", f"model_providers.local={provider}", "-c", "model_provider=local"]
    options += [] if "-m" in more else ["-m", "any"]
    return run(
        [codex, "exec", *options, *more, "--skip-git-repo-check", "Say something"],
        folder,
        LOCAL_KEY="none",
    )


def test_codex(serve: Any, engine: Any, tmp_path: Path) -> None:
    assert ANSWER in run_codex(tmp_path, serve(engine))
    first, second = turns(engine)[:2]
    assert second.startswith(first.removesuffix(b"<|im_start|>assistant: ")[:2000])
    assert b"no_such_tool" in second


def test_codex_edits_with_its_custom_tool(serve: Any, fakes: Any, tmp_path: Path) -> None:
    """A tool whose input is a text by a grammar, which Codex has for models of this name: the patch
    is carried out, and its result is in the next prompt."""

    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        prompt = bytes(id for id in request.prompt if id < 256)
        call = CALL.replace("no_such_tool", "apply_patch").replace('{"x": 1}', json.dumps(PATCH))
        called = b"<|im_start|>tool: " in prompt
        yield from fakes.say(ANSWER if called else call)(request, cancelled)

    engine = engine_of(fakes, script)
    output = run_codex(tmp_path, serve(engine), "-m", "gpt-5.5", "--sandbox", "danger-full-access")
    assert ANSWER in output
    assert (tmp_path / "home" / "new.txt").read_text() == "written by a patch\n"
    assert b"new.txt" in turns(engine)[1].rpartition(b"<|im_start|>tool: ")[2]


def test_codex_with_the_tool_of_an_mcp_server(serve: Any, fakes: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.py").write_text(NOTES)

    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        prompt = bytes(id for id in request.prompt if id < 256)
        name = re.search(rb'"name": "(mcp__notes_*look_up)"', prompt)
        call = CALL.replace("no_such_tool", name[1].decode() if name else "no_tool_there")
        called = b"<|im_start|>tool: " in prompt
        yield from fakes.say(ANSWER if called else call)(request, cancelled)

    engine = engine_of(fakes, script)
    arguments = json.dumps([str(tmp_path / "notes.py")])
    notes = f'{{command="{sys.executable}",args={arguments},default_tools_approval_mode="approve"}}'
    output = run_codex(tmp_path, serve(engine), "-c", f"mcp_servers.notes={notes}")
    assert ANSWER in output
    assert b"What the notes say" in turns(engine)[1]


def test_claude_code_searches_the_web(serve: Any, fakes: Any, mcp_url: str, tmp_path: Path) -> None:
    """It asks for the search in a request of its own, in which the server searches."""

    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        prompt = bytes(id for id in request.prompt if id < 256)
        if b"<|im_start|>tool: " in prompt:
            text = "Swallows fly 11 m/s."
        elif b'"web_search"' in prompt:
            text = CALL.replace("no_such_tool", "web_search").replace('"x": 1', '"query": "birds"')
        else:
            text = CALL.replace("no_such_tool", "WebSearch").replace('"x": 1', '"query": "birds"')
        yield from fakes.say(text)(request, cancelled)

    engine = engine_of(fakes, script)
    box = Toolbox(servers={"n": McpServer(url=mcp_url)}, web_search="n_search")
    claude = installed(tmp_path, "@anthropic-ai/claude-code", "claude")
    output = run(
        [claude, "-p", "Say something", "--model", "any", "--allowedTools", "WebSearch"],
        tmp_path,
        ANTHROPIC_BASE_URL=serve(engine, tools=box),
        ANTHROPIC_API_KEY="none",
        CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC="1",
    )
    assert "11 m/s" in output
    prompts = [bytes(id for id in request.prompt if id < 256) for request in engine.requests]
    assert any(b"tool: {" in prompt and b"Coconuts" in prompt for prompt in prompts)
    assert b"https://birds.example/swallows" in turns(engine)[-1]


def test_codex_searches_the_web(serve: Any, fakes: Any, mcp_url: str, tmp_path: Path) -> None:
    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        prompt = bytes(id for id in request.prompt if id < 256)
        call = CALL.replace("no_such_tool", "web_search").replace('"x": 1', '"query": "birds"')
        found = b"https://birds.example/swallows" in prompt
        yield from fakes.say("Swallows fly 11 m/s." if found else call)(request, cancelled)

    engine = engine_of(fakes, script)
    box = Toolbox(servers={"n": McpServer(url=mcp_url)}, web_search="n_search")
    output = run_codex(tmp_path, serve(engine, tools=box), "-c", 'web_search="live"')
    assert "11 m/s" in output
