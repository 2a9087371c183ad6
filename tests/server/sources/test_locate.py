"""From a command line to files: options, shortcuts, Docker Hub."""

from __future__ import annotations

import hashlib
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from gguf_serve.server import cli
from gguf_serve.server.configure import SettingsError
from gguf_serve.server.options.settings import Settings
from gguf_serve.server.sources import docker
from gguf_serve.server.sources.locate import located
from gguf_serve.server.sources.shortcuts import SHORTCUTS, expanded
from tests.support.stand_in_hub import stand_in


def test_a_path_is_left_as_it_is() -> None:
    settings = Settings(model="x.gguf")
    assert located(settings) is settings


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hf_repo": "nonsense"}, "-hf: 'nonsense' is no repository"),
        ({"hf_file": "x.gguf"}, "give that with -hf USER/NAME"),
        ({"docker_repo": "x", "offline": True}, "--offline forbids"),
    ],
)
def test_what_cannot_be_meant(given: dict[str, Any], words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        located(Settings(**given))


@pytest.mark.parametrize("args", [["-m", "x", "-hf", "a/b"], ["-mu", "http://x", "--demo"]])
def test_two_models(args: list[str]) -> None:
    result = CliRunner().invoke(cli.main, args)
    assert result.exit_code == 2
    assert f"{args[0]} and {args[-2] if len(args) > 3 else args[-1]} name a model each" in (
        result.output
    )


def test_a_repository_with_its_projector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    files = {"m-Q8_0.gguf": b"GGUFm", "mmproj-m.gguf": b"GGUFp"}
    with stand_in({"org/m": files}) as hub:
        monkeypatch.setenv("MODEL_ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        settings = located(Settings(hf_repo="org/m"))
        assert Path(str(settings.model)).read_bytes() == b"GGUFm"
        assert Path(str(settings.mmproj)).read_bytes() == b"GGUFp"
        assert located(Settings(hf_repo="org/m", use_mmproj=False)).mmproj is None
        assert located(Settings(hf_repo="org/m", mmproj="own.gguf")).mmproj == "own.gguf"
        result = CliRunner().invoke(cli.main, ["--cache-list"])
        assert result.output.startswith("number of models in cache: 1\n   1. org/m:Q8_0\n")


def test_a_draft_model_of_a_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    files = {"d-Q8_0.gguf": b"GGUF8", "d-Q4_K_M.gguf": b"GGUF4"}
    with stand_in({"org/d": files}) as hub:
        monkeypatch.setenv("MODEL_ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
        for name, content in (("org/d", b"GGUF4"), ("org/d:Q8_0", b"GGUF8")):
            found = located(Settings(model="m.gguf", draft_repo=name))
            assert Path(str(found.engine.speculation.draft.model)).read_bytes() == content
            assert found.model == "m.gguf"
    with pytest.raises(SettingsError, match="-hfd: 'nonsense' is no repository"):
        located(Settings(model="m.gguf", draft_repo="nonsense"))


@pytest.mark.parametrize("name", SHORTCUTS)
def test_shortcuts_are_options_that_are_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Settings] = []
    monkeypatch.setattr(cli, "start", lambda settings: taken.append(settings) or 0)
    for args in ([name], [name, "--port", "9"]):
        result = CliRunner().invoke(cli.main, args)
        assert result.exit_code == 0, result.output
    assert str(taken[0].hf_repo).startswith("ggml-org/")
    assert taken[0].port != 8080
    assert taken[1].port == 9


def test_what_is_said_outdoes_a_shortcut() -> None:
    name = "--vision-gemma-4b-default"
    args = expanded(["--port", "1", name, "-np", "2"])
    assert args == [*SHORTCUTS[name].split(), "--port", "1", "-np", "2"]


def test_docker_hub(tmp_path: Path) -> None:
    model = b"GGUFd" * 1000
    digest = "sha256:" + hashlib.sha256(model).hexdigest()
    asked: list[tuple[str, str | None]] = []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *_: Any) -> None: ...

        def do_GET(self) -> None:
            asked.append((self.path, self.headers.get("authorization")))
            layer = {"mediaType": docker.LAYERS[0], "digest": digest}
            body = {
                "/v2/ai/tiny/manifests/latest": json.dumps({"layers": [layer]}).encode(),
                "/v2/me/none/manifests/1": b'{"layers": []}',
                f"/v2/ai/tiny/blobs/{digest}": model,
            }.get(self.path, b'{"token": "t"}' if self.path.startswith("/token") else None)
            self.send_response(404 if body is None else 200)
            self.send_header("Content-Length", str(len(body or b"")))
            self.end_headers()
            self.wfile.write(body or b"")

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=[0.01], daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}"
    where = {"offline": False, "auth": url, "registry": url, "folder": tmp_path}
    assert docker.fetched("tiny", **where).read_bytes() == model  # type: ignore[arg-type]
    assert asked[-1] == (f"/v2/ai/tiny/blobs/{digest}", "Bearer t")
    with pytest.raises(SettingsError, match="me/none:1 of Docker Hub is no model"):
        docker.fetched("me/none:1", **where)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="answered 404"):
        docker.fetched("big", **where)  # type: ignore[arg-type]
    server.shutdown()
    server.server_close()
