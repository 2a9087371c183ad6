"""Models of Docker Hub (``ai/NAME``): a file that an OCI image's manifest names."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from gguf_serve.server.configure import SettingsError
from gguf_serve.server.sources import url

AUTH, REGISTRY = "https://auth.docker.io", "https://registry-1.docker.io"
LAYERS = ("application/vnd.docker.ai.gguf.v3", "application/vnd.docker.ai.gguf")
MANIFESTS = (
    "application/vnd.docker.distribution.manifest.v2+json,"
    "application/vnd.oci.image.manifest.v1+json"
)


def fetched(
    name: str, *, offline: bool, auth: str = AUTH, registry: str = REGISTRY,
    folder: Path | None = None,
) -> Path:  # fmt: skip
    """Of ``[repo/]model[:tag]``, where ``ai`` and ``latest`` go without saying; SettingsError."""
    path, _, tag = name.partition(":")
    repo, tag = path if "/" in path else f"ai/{path}", tag or "latest"
    if offline:
        raise SettingsError(f"-dr {name}: its manifest must be asked for, which --offline forbids")
    try:
        with httpx.Client(timeout=url.TIMEOUT, follow_redirects=True) as client:
            token = _json(
                client, f"{auth}/token?service=registry.docker.io&scope=repository:{repo}:pull"
            )
            headers = {"authorization": f"Bearer {token['token']}"}
            manifest = _json(
                client, f"{registry}/v2/{repo}/manifests/{tag}", headers | {"accept": MANIFESTS}
            )
        digest = next(each["digest"] for each in manifest["layers"] if each["mediaType"] in LAYERS)
    except httpx.RequestError as error:
        raise SettingsError(f"cannot reach {registry}: {error}") from None
    except (KeyError, TypeError, ValueError, StopIteration):
        raise SettingsError(f"{repo}:{tag} of Docker Hub is no model in GGUF") from None
    return url.fetched(
        f"{registry}/v2/{repo}/blobs/{digest}", headers=headers, folder=folder,
        sha256=digest.removeprefix("sha256:"),
    )  # fmt: skip


def _json(client: httpx.Client, address: str, headers: Mapping[str, str] | None = None) -> Any:
    answer = client.get(address, headers=dict(headers or {}))
    if not answer.is_success:
        raise SettingsError(f"Docker Hub answered {answer.status_code} for {address}")
    return answer.json()
