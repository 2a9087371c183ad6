"""vLLM's endpoints for adapters, with an engine that only notes what it is told."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from gguf_serve.server.requests.service import Endpoints


@pytest.fixture
def engine(fakes: Any) -> Any:
    return fakes.engine()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "adapters"
    (folder / "poems").mkdir(parents=True)
    for name in ("poems/p.gguf", "q.gguf"):
        (folder / name).write_bytes(b"")
    (tmp_path / "secret.gguf").write_bytes(b"")
    (folder / "link.gguf").symlink_to(tmp_path / "secret.gguf")
    return folder


@pytest.fixture
def http(serve: Any, engine: Any, folder: Path) -> Iterator[httpx.Client]:
    endpoints = Endpoints(lora_folder=folder)
    with httpx.Client(base_url=serve(engine, endpoints=endpoints)) as client:
        yield client


def load(http: httpx.Client, name: str, path: str, **fields: object) -> httpx.Response:
    body = {"lora_name": name, "lora_path": path, **fields}
    return http.post("/v1/load_lora_adapter", json=body)


def named(http: httpx.Client) -> dict[str, Any]:
    return {each["id"]: each for each in http.get("/v1/models").json()["data"]}


def test_loaded_used_listed_and_unloaded(http: Any, engine: Any, folder: Path) -> None:
    base = next(iter(named(http)))
    answer = load(http, "poet", "poems/p.gguf")
    assert (answer.status_code, answer.text) == (
        200, "Success: LoRA adapter 'poet' added successfully."
    )  # fmt: skip
    assert load(http, "q", str(folder / "q.gguf")).status_code == 200
    listed = named(http)
    assert list(listed) == [base, "a", "b", "poet", "q"]
    assert listed["poet"]["parent"] == base
    assert listed["poet"]["root"] == str(folder / "poems/p.gguf")
    assert "parent" not in listed[base]
    assert http.get("/v1/models/poet").json() == listed["poet"]
    assert http.get("/v1/models/other").json()["id"] == base
    shown = http.get("/lora-adapters").json()
    assert [(each["id"], each["scale"]) for each in shown] == [
        (0, 1.0), (1, 1.0), (2, 0.0), (3, 0.0),
    ]  # fmt: skip
    for model, expected in (("poet", ((2, 1.0),)), (f"{base}:q", ((3, 1.0),)), (base, None)):
        http.post("/v1/completions", json={"prompt": "a", "model": model})
        assert engine.requests[-1].adapters == expected
    answer = http.post("/v1/unload_lora_adapter", json={"lora_name": "poet", "lora_int_id": 2})
    assert (answer.status_code, answer.text) == (
        200, "Success: LoRA adapter 'poet' removed successfully."
    )  # fmt: skip
    assert list(named(http)) == [base, "a", "b", "q"]


def test_in_place(http: Any, engine: Any, folder: Path) -> None:
    assert load(http, "poet", "q.gguf").status_code == 200
    again = load(http, "poet", "poems/p.gguf")
    assert again.status_code == 400
    assert "'poet' has already been loaded" in again.json()["error"]["message"]
    assert load(http, "poet", "poems/p.gguf", load_inplace=True).status_code == 200
    assert [each.path.name for each in engine.loaded] == ["a.gguf", "b.gguf", "p.gguf"]


@pytest.mark.parametrize(
    ("path", "status", "message"),
    [
        ("../secret.gguf", 404, "is no file below the --lora-runtime folder"),
        ("link.gguf", 404, "is no file below"),
        ("/etc/passwd", 404, "is no file below"),
        ("poems", 404, "is no file below"),
        ("none.gguf", 404, "is no file below"),
        ("a\0b", 404, "is no file below"),
        ("x" * 9999, 404, "is no file below"),
    ],
)
def test_paths_that_are_refused(http: Any, path: str, status: int, message: str) -> None:
    answer = load(http, "x", path)
    assert answer.status_code == status
    assert message in answer.json()["error"]["message"]


def test_names_that_are_refused(http: Any) -> None:
    base = next(iter(named(http)))
    for name, message in (("", "expected printable"), (base, "is the name of the model itself")):
        answer = load(http, name, "q.gguf")
        assert answer.status_code == 400
        assert message in answer.json()["error"]["message"]
    answer = http.post("/v1/load_lora_adapter", json={"lora_name": "x"})
    assert answer.status_code == 400
    assert "Field 'lora_path' is required" in answer.json()["error"]["message"]
    for body in ({"lora_name": "x"}, {"lora_name": "a", "lora_int_id": 9}):
        answer = http.post("/v1/unload_lora_adapter", json=body)
        assert answer.status_code == 404
        assert "cannot be found" in answer.json()["error"]["message"]


def test_off_unless_a_folder_is_given(serve: Any, engine: Any) -> None:
    with httpx.Client(base_url=serve(engine)) as http:
        for path in ("/v1/load_lora_adapter", "/v1/unload_lora_adapter"):
            answer = http.post(path, json={"lora_name": "a", "lora_path": "a"})
            assert answer.status_code == 501
            assert "--lora-runtime" in answer.json()["error"]["message"]
