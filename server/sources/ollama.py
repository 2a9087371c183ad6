"""Models that Ollama has on this disk, served where they lie.

Ollama keeps a manifest (JSON, an OCI image's) for each name and tag, whose layers are files named
by their SHA-256: the model (GGUF), a projector, adapters, a template in Go's language, parameters.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from msgspec import Struct, field

from gguf_serve.server.configure import SettingsError

PREFIX = "ollama:"
REGISTRY, LIBRARY, TAG = "registry.ollama.ai", "library", "latest"
KIND = "application/vnd.ollama.image."
SYSTEM_FOLDER = Path("/usr/share/ollama/.ollama/models")  # of the service that its script installs


class OllamaModel(Struct, frozen=True):
    """Paths and texts of one manifest's layers."""

    name: str
    model: Path
    projector: Path | None = None
    adapters: tuple[Path, ...] = ()
    template: str = ""  # in Go's language
    system: str = ""
    params: Mapping[str, Any] = field(default_factory=dict)


def folders() -> list[Path]:
    """Where Ollama keeps its models, here."""
    named = os.environ.get("OLLAMA_MODELS")
    all = [Path(named)] if named else [Path.home() / ".ollama" / "models", SYSTEM_FOLDER]
    return [folder for folder in all if (folder / "manifests").is_dir()]


def find(name: str) -> OllamaModel:
    """Of ``[HOST/][NAMESPACE/]MODEL[:TAG]``, as ``ollama run`` takes it; SettingsError."""
    path, _, tag = name.partition(":") if "/" not in name else rpartition_tag(name)
    parts = path.split("/")
    full = [REGISTRY, LIBRARY, *parts][-max(3, len(parts)) :]
    if len(parts) == 2:
        full = [REGISTRY, *parts]
    found = folders()
    for folder in found:
        manifest = folder.joinpath("manifests", *full, tag or TAG)
        if manifest.is_file():
            return read(manifest, folder, name)
    known = ", ".join(sorted(each for folder in found for each in names(folder)))
    where = " or ".join(str(folder) for folder in found) or "~/.ollama/models (OLLAMA_MODELS)"
    raise SettingsError(f"Ollama has no model {name!r} in {where}; it has {known or 'none'}")


def rpartition_tag(name: str) -> tuple[str, str, str]:
    """The tag is behind a colon after the last slash; a host may have one for its port."""
    above, slash, last = name.rpartition("/")
    own, colon, tag = last.partition(":")
    return above + slash + own, colon, tag


def names(folder: Path) -> Iterator[str]:
    root = folder / "manifests"
    for manifest in root.rglob("*"):
        if manifest.is_file():
            *path, tag = manifest.relative_to(root).parts
            short = [part for part in path if part not in (REGISTRY, LIBRARY)]
            yield "/".join(short) + ("" if tag == TAG else f":{tag}")


def of_blob(blob: Path) -> OllamaModel | None:
    """The model whose file is this blob, for ``-m ~/.ollama/models/blobs/sha256-...``."""
    if not blob.name.startswith("sha256-") or blob.parent.name != "blobs":
        return None
    folder = blob.parent.parent
    for manifest in sorted((folder / "manifests").rglob("*")):
        if manifest.is_file():
            with contextlib.suppress(SettingsError):  # others need not be models that are here
                model = read(manifest, folder, manifest.parent.name)
                if model.model.name == blob.name:
                    return model
    return None


def read(manifest: Path, folder: Path, name: str) -> OllamaModel:
    try:
        layers = json.loads(manifest.read_bytes())["layers"]
        files = [(layer["mediaType"].removeprefix(KIND), blob(folder, layer)) for layer in layers]
        template, system, params = (text(files, kind) for kind in ("template", "system", "params"))
        decoded = json.loads(params or "{}")
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise SettingsError(f"{manifest} is no manifest of Ollama's: {error}") from None
    models = of_kind(files, "model")
    if len(models) != 1:
        raise SettingsError(f"{name} of Ollama has {len(models)} model files, expected one")
    return OllamaModel(
        name,
        models[0],
        next(iter(of_kind(files, "projector")), None),
        tuple(of_kind(files, "adapter")),
        template,
        system,
        decoded,
    )


def blob(folder: Path, layer: Mapping[str, Any]) -> Path:
    digest = str(layer["digest"])
    path = folder / "blobs" / digest.replace(":", "-")
    if "/" in digest or ".." in digest:
        raise ValueError(f"the digest {digest!r} is none")
    return path


def of_kind(files: Sequence[tuple[str, Path]], kind: str) -> list[Path]:
    return [path for found, path in files if found == kind]


def text(files: Sequence[tuple[str, Path]], kind: str) -> str:
    found = of_kind(files, kind)
    return found[0].read_text(encoding="utf-8") if found else ""
