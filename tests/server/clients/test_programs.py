"""Client libraries and programs as they are installed, with a real small model.

They have environments of their own, since their requirements go with nobody's: each variable of
PYTHONS names the interpreter of one with its packages, OPEN_WEBUI_PYTHON of one with open-webui
(whose torch is not needed), AI_SDK_MODULES a folder node_modules with AI_SDK, AIDER, GUIDELLM and
LM_EVAL the programs of these names, and CLIENTS_MODEL the file of a model that calls tools, as
Qwen2.5-Coder-1.5B-Instruct.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from listening import free_port

pytestmark = pytest.mark.slow
FOLDER = Path(__file__).resolve().parents[2] / "data" / "clients"
# By the beginnings of programs' names; "": of all others
PYTHONS = {
    "llama_index": ("LLAMA_INDEX_PYTHON", "llama-index-llms-openai-like llama-index-llms-ollama"),
    "smolagents": ("SMOLAGENTS_PYTHON", "smolagents[openai]"),
    "dspy": ("DSPY_PYTHON", "dspy"),
    "": (
        "CLIENTS_PYTHON",
        "langchain-openai langchain-ollama pydantic-ai-slim[openai] openai-agents litellm llm",
    ),
}
AI_SDK = "ai @ai-sdk/openai-compatible @ai-sdk/openai @ai-sdk/anthropic"
TASK = """
task: small
dataset_path: json
dataset_kwargs: {{data_files: {{test: {data}}}}}
output_type: multiple_choice
test_split: test
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: gold
target_delimiter: ""
metric_list: [{{metric: acc}}]
"""


def named(variable: str, what: str) -> str:
    found = os.environ.get(variable)
    if found is None:
        pytest.skip(f"{variable} names no {what}")
    return found


@pytest.fixture
def python(program: str) -> str:
    variable, packages = next(PYTHONS[start] for start in PYTHONS if program.startswith(start))
    return named(variable, f"interpreter with {packages}")


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    model = named("CLIENTS_MODEL", "model that calls tools")
    port = free_port()
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


def run(command: list[str], folder: Path, **environment: str) -> str:
    """What a program writes to its output, in a folder that is its home."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        command,
        # litellm would look for prices in the internet, else.
        env=kept | {"HOME": str(folder), "LITELLM_LOCAL_MODEL_COST_MAP": "True", **environment},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=200,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def check_called(output: str, n_times: int = 1) -> None:
    called = [line for line in output.splitlines() if line.startswith("CALLED")]
    assert len(called) >= n_times, output
    assert all("get_weather" in line and "Paris" in line for line in called)


@pytest.mark.parametrize("program", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_the_tool_is_called(python: str, url: str, program: str, tmp_path: Path) -> None:
    check_called(run([python, str(FOLDER / f"{program}.py"), url], tmp_path))


def test_the_ai_sdk_calls_the_tool(url: str, tmp_path: Path) -> None:
    """By each of its providers that speak a dialect, streamed; by the first one whole, too."""
    modules = named("AI_SDK_MODULES", f"folder with {AI_SDK}")
    (tmp_path / "node_modules").symlink_to(modules)
    program = tmp_path / "program.mjs"
    program.write_text((FOLDER / "ai_sdk_tools.mjs").read_text())
    check_called(run(["node", str(program), url], tmp_path), 5)


def test_aider_answers(url: str, tmp_path: Path) -> None:
    aider = named("AIDER", "aider")
    (tmp_path / "a.py").write_text("print(1)\n")
    output = run(
        [
            aider, "--model", "openai/any", "--message", "Say hello, change nothing.", "--no-git",
            "--yes-always", "--no-show-model-warnings", "--analytics-disable", "--no-pretty",
            "--no-check-update", "--edit-format", "whole", "a.py",
        ],
        tmp_path,
        OPENAI_API_BASE=f"{url}/v1",
        OPENAI_API_KEY="none",
    )  # fmt: skip
    assert re.search(r"Tokens: .* sent, [1-9]\d* received", output), output


def test_guidellm_measures(url: str, tmp_path: Path) -> None:
    guidellm = named("GUIDELLM", "guidellm")
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"prompt": "Say {n}"}}\n' for n in range(8)))
    run(
        [
            guidellm, "run", "--backend", f"kind=openai_http,target={url},model=any", "--profile",
            "kind=concurrent,streams=2", "--constraint", "kind=max_requests,count=4", "--data",
            f"kind=json_file,path={prompts}", "--output", f"kind=json,path={tmp_path}/out.json",
            "--disable-console",
        ],
        tmp_path,
    )  # fmt: skip
    (measured,) = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    requests = measured["metrics"]["request_totals"]
    assert requests["errored"] == 0
    assert requests["successful"] > 2


def test_lm_eval_takes_the_servers_tokenizer(url: str, tmp_path: Path) -> None:
    """A task of two questions that any model knows, and tokenizer_backend=remote."""
    lm_eval = named("LM_EVAL", "lm_eval")
    data = tmp_path / "data.jsonl"
    questions = {"The capital of France is": [" Paris", " Rome"], "1, 2, 3,": [" 4", " 9"]}
    data.write_text("".join(
        json.dumps({"question": question, "choices": choices, "gold": 0}) + "\n"
        for question, choices in questions.items()
    ))  # fmt: skip
    (tmp_path / "small.yaml").write_text(TASK.format(data=data))
    how = f"model=any,base_url={url}/v1/completions,tokenizer_backend=remote,num_concurrent=1"
    output = run(
        [
            lm_eval, "run", "--model", "local-completions", "--model_args", how, "--tasks", "small",
            "--include_path", str(tmp_path),
        ],
        tmp_path,
        HF_HUB_OFFLINE="1",
        HF_DATASETS_OFFLINE="1",
    )  # fmt: skip
    assert re.search(r"\|acc +\|↑ +\| +1\|", output), output


@contextmanager
def open_webui(url: str, folder: Path) -> Iterator[httpx.Client]:
    """One that knows the server by both of its dialects, and whoever comes as its administrator."""
    python, port = named("OPEN_WEBUI_PYTHON", "interpreter with open-webui"), free_port()
    settings = {
        "DATA_DIR": str(folder), "FROM_INIT_PY": "true", "WEBUI_AUTH": "False",
        "WEBUI_SECRET_KEY": "secret", "OFFLINE_MODE": "true", "HF_HUB_OFFLINE": "1",
        "OLLAMA_BASE_URLS": url, "OPENAI_API_BASE_URLS": f"{url}/v1", "OPENAI_API_KEYS": "none",
        "RAG_EMBEDDING_ENGINE": "openai", "RAG_EMBEDDING_MODEL": "any",
        "RAG_OPENAI_API_BASE_URL": f"{url}/v1", "RAG_OPENAI_API_KEY": "none",
    }  # fmt: skip
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [python, "-m", "uvicorn", "open_webui.main:app", "--port", str(port)]
    with subprocess.Popen(command, env=kept | settings, cwd=folder) as server:
        try:
            address = f"http://127.0.0.1:{port}"
            wait_until_ready(address, server)
            with httpx.Client(base_url=f"{address}/api", timeout=300) as http:
                found = http.post("/v1/auths/signin", json={"email": "", "password": ""}).json()
                http.headers["Authorization"] = f"Bearer {found['token']}"
                yield http
        finally:
            server.terminate()


def test_open_webui(url: str, tmp_path: Path) -> None:
    """By each connection a stream, a call and a title; a file's text is found by its vectors."""
    with open_webui(url, tmp_path) as http:
        prefix = {"OPENAI_API_CONFIGS": {"0": {"enable": True, "prefix_id": "openai"}}}
        config = http.get("../openai/config").json() | prefix
        http.post("../openai/config/update", json=config).raise_for_status()
        models = [model["id"] for model in http.get("/models").json()["data"]]
        assert len(models) == 2
        for model in models:
            ask_open_webui(http, model)
        note = {"file": ("note.txt", b"The secret word is banana.", "text/plain")}
        file = http.post("/v1/files/", files=note).raise_for_status().json()["id"]
        until = time.monotonic() + 60
        while "completed" not in (status := http.get(f"/v1/files/{file}/process/status").text):
            assert time.monotonic() < until, status
            time.sleep(0.2)
        given = {"files": [{"type": "file", "id": file}]}
        body = {"model": models[0], "messages": [{"role": "user", "content": "Which word?"}]}
        assert "banana" in http.post("/chat/completions", json=body | given).text


def ask_open_webui(http: httpx.Client, model: str) -> None:
    question = {"role": "user", "content": "What is the weather in Paris? Use the tool."}
    parameters = {"type": "object", "properties": {"city": {"type": "string"}}}
    function = {"name": "get_weather", "parameters": parameters}
    given = {"tools": [{"type": "function", "function": function}]}
    body = {"model": model, "messages": [question]}
    called = http.post("/chat/completions", json=body | given).raise_for_status().json()
    (call,) = called["choices"][0]["message"]["tool_calls"]
    assert json.loads(call["function"]["arguments"]) == {"city": "Paris"}
    streamed = http.post("/chat/completions", json=body | {"stream": True, "max_tokens": 20})
    assert streamed.text.count('"content":') > 3
    assert streamed.text.rstrip().endswith("data: [DONE]")
    assert http.post("/v1/tasks/title/completions", json=body).json()["choices"]
