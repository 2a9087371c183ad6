"""The whole command in a process of its own: start, signals, exit codes, sockets."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import re
import shlex
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from listening import free_port

import gguf_serve.engine.engine
from gguf_serve.server.container.health_check import is_healthy
from gguf_serve.server.launch import (
    connection_limits,
    http_config,
    load_model,
    unfit,
)
from gguf_serve.server.options.settings import Settings

SCRIPT = Path(__file__).parents[1] / "support" / "scripted_serve.py"
BODY = {"prompt": "x", "stream": True}
SECONDS = 60  # until a process is given up

Start = Callable[..., "subprocess.Popen[str]"]


@pytest.fixture
def model(tmp_path: Path) -> str:
    path = tmp_path / "tiny.gguf"
    path.write_bytes(b"GGUF")
    return str(path)


@pytest.fixture
def start() -> Iterator[Start]:
    processes: list[subprocess.Popen[str]] = []

    def run(*args: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, str(SCRIPT), *args],
            env=os.environ | env,
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def get(url: str, process: subprocess.Popen[str]) -> httpx.Response:
    """As soon as somebody listens."""
    until = time.monotonic() + SECONDS
    while time.monotonic() < until:
        try:
            return httpx.get(url, timeout=SECONDS)
        except httpx.ConnectError:
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.02)
    raise AssertionError("nobody listens")


def wait_until_ready(url: str, process: subprocess.Popen[str]) -> None:
    while get(f"{url}/health", process).status_code != 200:
        time.sleep(0.02)


def end(process: subprocess.Popen[str], number: int = signal.SIGTERM) -> tuple[int, str]:
    """Exit code, what was on stderr."""
    process.send_signal(number)
    _, errors = process.communicate(timeout=SECONDS)
    return process.returncode, errors


def test_listens_while_it_loads(start: Start, model: str, tmp_path: Path) -> None:
    port, loaded = free_port(), tmp_path / "loaded"
    process = start("-m", model, "--port", str(port), LOADED=str(loaded))
    url = f"http://127.0.0.1:{port}"
    assert get(f"{url}/health", process).json()["error"]["message"] == "Loading model"
    loaded.touch()
    wait_until_ready(url, process)
    code, errors = end(process)
    assert code == 0
    for words in (
        "Loading tiny.gguf",
        "1.54B parameters",
        "Q4_K x 168",
        "up to 2048 tokens in each of 2 slots",
    ):
        assert words in errors
    assert f"listening     {url}" in errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("number", "env"),
    [(signal.SIGTERM, {}), (signal.SIGINT, {}), (signal.SIGTERM, {"STUCK": "1"})],
)
def test_a_signal_ends_streams_and_the_process(
    start: Start, model: str, number: int, env: dict[str, str]
) -> None:
    """Though the engine be stuck in a step."""
    port = free_port()
    process = start("-m", model, "--port", str(port), **env)
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(url, process)
    with httpx.stream("POST", f"{url}/v1/completions", json=BODY, timeout=20) as response:
        lines = response.iter_lines()
        assert json.loads(next(lines).removeprefix("data: "))["choices"][0]["text"] == "x"
        code, errors = end(process, number)
        rest = [line for line in lines if line]
    assert json.loads(rest[-1].removeprefix("data: "))["error"]["code"] == 503
    assert code == 0, errors
    assert "Traceback" not in errors


def test_a_signal_ends_loading(start: Start, model: str, tmp_path: Path) -> None:
    port = free_port()
    process = start("-m", model, "--port", str(port), LOADED=str(tmp_path / "never"))
    get(f"http://127.0.0.1:{port}/health", process)
    code, errors = end(process)
    assert code == 0, errors


@pytest.mark.parametrize(
    ("options", "warned"),
    [([], False), (["--host", "0.0.0.0"], True), (["--host", "0.0.0.0", "--api-key", "a"], False)],
)
def test_a_model_that_cannot_be_loaded(
    start: Start, model: str, options: list[str], warned: bool
) -> None:
    """Whom it would have been open to has been said before."""
    process = start("-m", model, "--port", "0", *options, FAIL="1")
    _, errors = process.communicate(timeout=SECONDS)
    assert ("can use the server: there is no --api-key" in errors) is warned
    assert process.returncode == 1
    assert errors.splitlines()[-1] == "serve: tiny.gguf: unknown architecture 'abacus'"
    assert "Traceback" not in errors


@pytest.mark.parametrize(("proxies", "client"), [((), "127.0.0.1"), (("127.0.0.0/8",), "6.6.6.6")])
def test_whom_forwarded_headers_are_believed(
    model: str, proxies: tuple[str, ...], client: str
) -> None:
    found: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        found.append(scope["client"][0])

    settings = Settings(model=model, forwarded_allow_ips=proxies)
    config = http_config(app, settings, connection_limits(settings))
    config.load()
    scope = {
        "type": "http", "client": ("127.0.0.1", 5), "headers": [(b"x-forwarded-for", b"6.6.6.6")]
    }  # fmt: skip
    asyncio.run(config.loaded_app(scope, None, None))
    assert found == [client]


def test_collections_pass_over_a_loaded_model(monkeypatch: pytest.MonkeyPatch, model: str) -> None:
    """They would stop every stream for as long as it takes to look through all of it."""
    loaded: list[list[str]] = [[]]
    monkeypatch.setattr(gguf_serve.engine.engine, "load_engine", lambda *_: loaded)
    try:
        assert load_model(Settings(model=model), lambda _: None) is loaded
        assert not any(known is loaded for known in gc.get_objects())
    finally:
        gc.unfreeze()


@pytest.mark.parametrize(
    ("options", "engine", "problem"),
    [
        ({}, {}, ""),
        ({"voices": "."}, {"speech": None}, "--voices: tiny.gguf does not speak"),
        ({"tts_speaker_file": "a.wav"}, {"speech": None}, "--tts-speaker-file: tiny.gguf does not"),
        ({"tts_lang": "en"}, {"speech": None}, "--tts-lang: tiny.gguf does not speak"),
        ({"tts_lang": "en"}, {"speech": ("en", "de")}, ""),
        ({"tts_lang": "fr"}, {"speech": ("en", "de")}, "--tts-lang: language 'fr' is not known"),
        (
            {"reranking": True},
            {"info": SimpleNamespace(ranks=False)},
            "--rerank: tiny.gguf has no head for ranking",
        ),
    ],
)
def test_options_for_what_a_model_has_not(
    fakes: Any, options: dict[str, Any], engine: dict[str, Any], problem: str
) -> None:
    if engine.get("speech"):
        engine = {"speech": fakes.speech(engine["speech"])}
    found = unfit(Settings(**options), SimpleNamespace(**engine), "tiny.gguf")  # type: ignore[arg-type]
    assert found.startswith(problem)
    assert bool(found) == bool(problem)


def test_a_port_in_use(start: Start, model: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        process = start("-m", model, "--port", str(port))
        _, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 1
    expected = f"serve: port {port} of 127.0.0.1 is in use: choose another with --port"
    assert errors.splitlines()[-1] == expected


def test_several_hosts_and_a_unix_socket(start: Start, model: str, tmp_path: Path) -> None:
    path = str(tmp_path / "serve.sock")
    with socket.socket(socket.AF_UNIX) as left_over:
        left_over.bind(path)  # as a killed server leaves it
    port = free_port()
    process = start(
        "-m", model, LLAMA_ARG_HOST=f"127.0.0.1,127.0.0.2,{path}", LLAMA_ARG_PORT=str(port)
    )
    for host in ("127.0.0.1", "127.0.0.2"):
        wait_until_ready(f"http://{host}:{port}", process)
    with httpx.Client(transport=httpx.HTTPTransport(uds=path)) as client:
        assert client.get("http://x/health").json() == {"status": "ok"}
    code, errors = end(process)
    assert code == 0
    assert f"unix:{path}" in errors
    assert not os.path.exists(path)


def test_options_reach_the_engine_and_flags_win(start: Start, model: str, tmp_path: Path) -> None:
    log_file = tmp_path / "log"
    args = [
        "-m",
        model,
        "--port",
        "0",
        "-c",
        "512",
        "-ngl",
        "99",
        "-fa",
        "--log-file",
        str(log_file),
    ]
    process = start(*args, LLAMA_ARG_CTX_SIZE="64", LLAMA_ARG_UBATCH="128", LLAMA_ARG_DEVICE="1")
    while "listening" not in (log_file.read_text() if log_file.exists() else ""):
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.02)
    text = log_file.read_text()
    for words in ("n_ctx=512", "n_ubatch=128", "n_gpu_layers=99", "flash_attn='on'", "device='1'"):
        assert words in text
    assert re.search(r"listening +http://127\.0\.0\.1:\d+", text)
    assert end(process)[0] == 0


def test_a_log_file_that_cannot_be_written(start: Start, model: str, tmp_path: Path) -> None:
    process = start("-m", model, "--port", "0", "--log-file", str(tmp_path / "no" / "log"))
    errors = process.communicate(timeout=SECONDS)[1]
    assert process.returncode == 1
    assert errors.startswith("serve: --log-file: cannot write")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs a file that is always full")
def test_a_log_file_on_a_full_disk(start: Start, model: str) -> None:
    """One line says so, and the server goes on."""
    port = free_port()
    process = start("-m", model, "--port", str(port), "-v", "--log-file", "/dev/full")
    wait_until_ready(f"http://127.0.0.1:{port}", process)
    for _ in range(20):
        claimed = {"x-forwarded-for": "6.6.6.6"}
        response = httpx.get(f"http://127.0.0.1:{port}/health", headers=claimed)
        assert response.status_code == 200
    errors = end(process)[1]
    assert errors.count("--log-file: cannot write /dev/full: No space left on device") == 1
    assert errors.count("GET /health") >= 20
    assert "6.6.6.6" not in errors
    assert "Traceback" not in errors


def test_what_clients_cause_is_logged_once(start: Start, model: str) -> None:
    port = free_port()
    process = start("-m", model, "--port", str(port))
    wait_until_ready(f"http://127.0.0.1:{port}", process)
    for _ in range(5):
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(b"nonsense\r\n\r\n")
            assert client.recv(100).startswith(b"HTTP/1.1 400")
    assert end(process)[1].count("Invalid HTTP request received.") == 1


def test_list_devices() -> None:
    command = [sys.executable, str(SCRIPT), "--list-devices"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == (
        "0: Fake device (cpu, 4.0 GiB free, 2 compute units)\n"
        "   Nobody, fake 1.0\n   work-groups of 64\n"
    )


def test_list_devices_where_there_is_none() -> None:
    command = [sys.executable, str(SCRIPT), "--list-devices"]
    env = os.environ | {"DEVICES": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "serve: no driver; install one\n"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl for a certificate")
def test_https(start: Start, model: str, tmp_path: Path) -> None:
    key, certificate = str(tmp_path / "key.pem"), str(tmp_path / "certificate.pem")
    made = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"]
    made += ["-keyout", key, "-out", certificate, "-subj", "/CN=localhost"]
    made += ["-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1"]
    subprocess.run(made, check=True, capture_output=True)
    port = free_port()
    options = ["--ssl-key-file", key, "--ssl-cert-file", certificate, "--api-prefix", "/llm"]
    options += ["--header-timeout", "1"]
    process = start("-m", model, "--port", str(port), *options)
    trusted = ssl.create_default_context(cafile=certificate)
    url = f"https://127.0.0.1:{port}"
    with httpx.Client(verify=trusted) as client:
        until = time.monotonic() + SECONDS
        while True:
            try:
                answer = client.get(f"{url}/llm/health")
                if answer.status_code == 200:
                    break
            except httpx.TransportError:  # nobody listens, or a handshake was too slow
                assert process.poll() is None, process.communicate()[1]
            assert time.monotonic() < until
            time.sleep(0.02)
        assert answer.json() == {"status": "ok"}
    assert is_healthy(["serve", "-m", model, "--port", str(port), *options])
    with socket.create_connection(("127.0.0.1", port), timeout=10) as silent:
        assert silent.recv(1) == b""  # a handshake has no more time than a header
    code, errors = end(process)
    assert code == 0
    assert f"listening     {url}" in errors


@pytest.mark.parametrize(
    "line",
    [
        "-ngl 99 -c 4096 --jinja -fa --mlock --numa distribute -tb 8 -np 4 --cont-batching "
        "--cache-reuse 256 -ctk q8_0 -ctv q8_0 --temp 0.7 --top_p 0.8 --no-webui --no-mmap",
        "--host 127.0.0.1 --ctx-size 512 --parallel 2 --slots --metrics -md MODEL -ngld 8 -td 2 "
        "-sm row -ts 3,1 --log-verbosity 3 -r '\\n' --alias a,b --embedding --offline -e",
    ],
)
def test_command_lines_of_llama_servers(start: Start, model: str, line: str) -> None:
    """One line of warning for each reason, and it serves."""
    port = free_port()
    process = start("-m", model, "--port", str(port), *shlex.split(line.replace("MODEL", model)))
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(url, process)
    code, errors = end(process)
    assert code == 0
    assert errors.count(" nothing here: ") == (4 if "--numa" in line else 2), errors


def test_keys_and_limits_are_read_again(start: Start, model: str, tmp_path: Path) -> None:
    keys, limits, port = tmp_path / "keys", tmp_path / "limits", free_port()
    keys.write_text("old")
    limits.write_text("[default]\nrequests = 9\n")
    files = ["--api-key-file", str(keys), "--limits", str(limits)]
    process = start("-m", model, "--port", str(port), *files)
    url = f"http://127.0.0.1:{port}"
    wait_until_ready(url, process)

    def status(key: str) -> int:
        return httpx.get(f"{url}/nothing", headers={"x-api-key": key}).status_code

    assert (status("old"), status("new")) == (404, 401)
    keys.write_text("new")
    process.send_signal(signal.SIGHUP)
    until(lambda: status("new") == 404)
    assert status("old") == 401
    with socket.create_connection(("127.0.0.1", port)) as waiting:
        head = "POST /tokenize HTTP/1.1\r\nhost: x\r\nx-api-key: new\r\ncontent-length: 9\r\n\r\n"
        waiting.sendall(head.encode())

        def posted() -> int:
            return httpx.post(f"{url}/nothing", headers={"x-api-key": "new"}).status_code

        assert posted() == 404
        limits.write_text("[default]\nrequests = 1\n")
        process.send_signal(signal.SIGHUP)
        until(lambda: posted() == 429)
    limits.write_text("[default]\ntokens = 1\n")
    keys.write_text("")  # nobody could come in: those that were there stay
    process.send_signal(signal.SIGHUP)
    time.sleep(0.1)
    assert status("new") == 404
    code, errors = end(process)
    assert code == 0
    assert "the keys have been read again" in errors
    assert "the limits have been read again" in errors
    assert "the keys stay as they were: --api-key-file:" in errors
    assert "the limits stay as they were: --limits:" in errors


def until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + SECONDS
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_log_as_json(model: str) -> None:
    command = [sys.executable, str(SCRIPT), "-m", model, "--port", "0", "--log-jsonl"]
    done = subprocess.run(
        command, env=os.environ | {"FAIL": "1"}, capture_output=True, text=True, timeout=60
    )
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert lines
    assert {"type", "time", "level", "msg"} == set(lines[0])
    assert {line["level"] for line in lines} <= {"info", "warning", "error"}
    assert done.stderr == "serve: tiny.gguf: unknown architecture 'abacus'\n"
