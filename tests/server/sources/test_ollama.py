from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from gguf_serve.server.configure import SettingsError
from gguf_serve.server.sources import ollama, ollama_options

KIND = "application/vnd.ollama.image."


@pytest.fixture
def put(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Puts a model into Ollama's folder; gives the path of each layer."""
    monkeypatch.setenv("OLLAMA_MODELS", str(tmp_path))

    def run(*name: str, **layers: bytes) -> dict[str, Path]:
        entries, paths = [], {}
        (tmp_path / "blobs").mkdir(exist_ok=True)
        for kind, content in layers.items():
            digest = hashlib.sha256(content).hexdigest()
            paths[kind] = tmp_path / "blobs" / f"sha256-{digest}"
            paths[kind].write_bytes(content)
            entries.append({"mediaType": KIND + kind, "digest": f"sha256:{digest}"})
        manifest = tmp_path.joinpath("manifests", *name)
        manifest.parent.mkdir(parents=True, exist_ok=True)
        manifest.write_text(json.dumps({"schemaVersion": 2, "layers": entries}))
        return paths

    return run


@pytest.fixture
def gguf(tmp_path: Path) -> Any:
    """A file with these metadata and no tensors."""
    import gguf as library

    def run(**metadata: str) -> bytes:
        path = tmp_path / "made.gguf"
        writer = library.GGUFWriter(path, "llama")
        for key, value in metadata.items():
            writer.add_string(key.replace("__", "."), value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.close()
        return path.read_bytes()

    return run


LIBRARY = ("registry.ollama.ai", "library")


def test_names_as_ollama_takes_them(put: Any) -> None:
    latest = put(*LIBRARY, "tiny", "latest", model=b"GGUF1")["model"]
    small = put(*LIBRARY, "tiny", "1b", model=b"GGUF2")["model"]
    other = put("registry.ollama.ai", "me", "tiny", "latest", model=b"GGUF3")["model"]
    hub = put("hf.co", "org", "tiny-GGUF", "Q4_K_M", model=b"GGUF4")["model"]
    assert ollama.find("tiny").model == latest
    assert ollama.find("tiny:1b").model == small
    assert ollama.find("me/tiny").model == other
    assert ollama.find("hf.co/org/tiny-GGUF:Q4_K_M").model == hub
    (folder,) = ollama.folders()
    assert set(ollama.names(folder)) == {"tiny", "tiny:1b", "me/tiny", "hf.co/org/tiny-GGUF:Q4_K_M"}


def test_one_that_is_not_there_is_named_with_those_that_are(put: Any) -> None:
    put(*LIBRARY, "tiny", "latest", model=b"GGUF1")
    with pytest.raises(SettingsError, match=r"no model 'big:7b' in .*; it has tiny"):
        ollama.find("big:7b")


@pytest.mark.parametrize("manifest", ["", "[]", "{}", '{"layers": 1}', '{"layers": [{}]}'])
def test_a_broken_manifest(put: Any, tmp_path: Path, manifest: str) -> None:
    put(*LIBRARY, "tiny", "latest", model=b"GGUF1")
    tmp_path.joinpath("manifests", *LIBRARY, "tiny", "latest").write_text(manifest)
    with pytest.raises(SettingsError, match=r"is no manifest of Ollama's|has 0 model files"):
        ollama.find("tiny")


def test_what_it_asks_for_must_be_json(put: Any) -> None:
    put(*LIBRARY, "tiny", "latest", model=b"GGUF1", params=b"{temperature")
    with pytest.raises(SettingsError, match="is no manifest of Ollama's"):
        ollama.find("tiny")


def test_a_file_is_found_beside_manifests_that_have_none(put: Any) -> None:
    """As those of models in Ollama's cloud."""
    put(*LIBRARY, "a-cloud", "latest", system=b"Hello")
    model = put(*LIBRARY, "tiny", "latest", model=b"GGUF1")["model"]
    found = ollama.of_blob(model)
    assert found is not None
    assert found.name == "tiny"


def test_a_digest_leads_nowhere_else(put: Any, tmp_path: Path) -> None:
    put(*LIBRARY, "tiny", "latest", model=b"GGUF1")
    path = tmp_path.joinpath("manifests", *LIBRARY, "tiny", "latest")
    path.write_text(path.read_text().replace("sha256:", "../../"))
    with pytest.raises(SettingsError, match="is none"):
        ollama.find("tiny")


def test_what_belongs_to_a_model_comes_before_what_is_said(put: Any, gguf: Any) -> None:
    params = {"temperature": 0.3, "stop": ["<|im_end|>", "</s>"], "num_ctx": 8192}
    paths = put(
        *LIBRARY, "tiny", "latest", model=gguf(), projector=b"GGUFp", adapter=b"GGUFa",
        params=json.dumps(params).encode(), template=b"<|im_start|>user\n{{ .Prompt }}",
    )  # fmt: skip
    expected = [
        "--mmproj", str(paths["projector"]), "--lora", str(paths["adapter"]), "--temp", "0.3",
        "-r", "<|im_end|>", "-r", "</s>", "--chat-template", "chatml",
    ]  # fmt: skip
    args = ["--port", "1", "-m", "ollama:tiny", "--temp", "1"]
    assert ollama_options.expanded(args) == [
        *expected, "--port", "1", "-m", str(paths["model"]), "--temp", "1"
    ]  # fmt: skip
    assert ollama_options.expanded(["-m", str(paths["model"])])[: len(expected)] == expected
    assert ollama_options.expanded(["-m", "x.gguf"]) == ["-m", "x.gguf"]


def test_the_file_s_own_template_counts(put: Any, gguf: Any) -> None:
    model = gguf(tokenizer__chat_template="{{ messages }}")
    put(*LIBRARY, "tiny", "latest", model=model, template=b"<|im_start|>")
    assert "--chat-template" not in ollama_options.expanded(["-m", "ollama:tiny"])


def test_every_format_is_one_that_is_there() -> None:
    from gguf_serve.engine.chat.builtin import builtin_names

    assert {*ollama_options.MARKERS.values(), "phi3", "zephyr"} <= set(builtin_names())
