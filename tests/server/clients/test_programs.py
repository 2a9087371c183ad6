"""Client libraries as they are installed, each with a tool that a real small model calls.

They have environments of their own, since their requirements go with nobody's: CLIENTS_PYTHON names
the interpreter of one with PACKAGES, LLAMA_INDEX_PYTHON of one with LLAMA_INDEX, and CLIENTS_MODEL
the file of a model that calls tools, as Qwen2.5-Coder-1.5B-Instruct.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).resolve().parents[2] / "data" / "clients"
PACKAGES = "langchain-openai langchain-ollama pydantic-ai-slim[openai] openai-agents litellm llm"
LLAMA_INDEX = "llama-index-llms-openai-like llama-index-llms-ollama"


@pytest.fixture
def python(program: str) -> str:
    is_llama_index = program.startswith("llama_index")
    variable = "LLAMA_INDEX_PYTHON" if is_llama_index else "CLIENTS_PYTHON"
    found = os.environ.get(variable)
    if found is None:
        packages = LLAMA_INDEX if is_llama_index else PACKAGES
        pytest.skip(f"{variable} names no interpreter with {packages}")
    return found


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    model = os.environ.get("CLIENTS_MODEL")
    if model is None:
        pytest.skip("CLIENTS_MODEL names no model that calls tools")
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-m", "gguf_serve.server.cli", "-m", model, "--port", str(port)]
    with subprocess.Popen([*command, "-c", "8192"], stderr=subprocess.DEVNULL) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_ready(address, server)
            yield address
        finally:
            server.terminate()


def wait_until_ready(url: str, server: subprocess.Popen[bytes]) -> None:
    for _ in range(600):
        assert server.poll() is None
        try:
            if httpx.get(f"{url}/health").status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.1)
    raise AssertionError("the server is not ready within a minute")


@pytest.mark.parametrize("program", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_the_tool_is_called(python: str, url: str, program: str, tmp_path: Path) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [python, str(FOLDER / f"{program}.py"), url],
        # The library would look for prices in the internet, else.
        env=kept | {"HOME": str(tmp_path), "LITELLM_LOCAL_MODEL_COST_MAP": "True"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    called = [line for line in done.stdout.splitlines() if line.startswith("CALLED")]
    assert called, done.stdout + done.stderr
    assert all("get_weather" in line and "Paris" in line for line in called)
