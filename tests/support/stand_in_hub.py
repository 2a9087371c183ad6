"""A stand-in for the hub's API on a loopback port: what huggingface_hub asks of it, and faults."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class StandIn:
    """Repositories by name, with their files; what was asked of it, and what goes wrong."""

    files: dict[str, dict[str, bytes]]
    status: dict[str, int] = field(default_factory=dict)  # of a repository, for all that is asked
    code: dict[str, str] = field(default_factory=dict)  # X-Error-Code of such an answer
    cut: list[int] = field(default_factory=list)  # bytes after which the next downloads break off
    altered: bool = False  # whether other bytes come than the checksum says
    asked: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    url: str = ""

    def commit(self, repo: str) -> str:
        """Of the files that it has now."""
        digest = hashlib.sha1(usedforsecurity=False)
        for name, content in self.files[repo].items():
            digest.update(name.encode() + content)
        return digest.hexdigest()

    def requests(self, part: str, method: str = "GET") -> list[dict[str, str]]:
        return [head for how, path, head in self.asked if how == method and part in path]


class Handler(BaseHTTPRequestHandler):
    hub: StandIn  # in a class of each server's own
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        self.hub.asked.append((self.command, path, headers))
        repo = "/".join(path.removeprefix("/api/models/").strip("/").split("/")[:2])
        if repo in self.hub.status:
            return self.answer(
                self.hub.status[repo], b"{}", **{"X-Error-Code": self.hub.code.get(repo, "")}
            )
        if repo not in self.hub.files and not path.startswith("/blob/"):
            return self.answer(401, b"{}", **{"X-Error-Code": "RepoNotFound"})
        if path.startswith("/api/models/"):
            files = [entry(*one) for one in self.hub.files[repo].items()]
            info = {"id": repo, "sha": self.hub.commit(repo), "siblings": files}
            return self.answer(200, json.dumps(info).encode())
        if path.startswith("/blob/"):  # where a resolved address leads
            _, _, owner, name, *rest = path.split("/")
            return self.content(self.hub.files[f"{owner}/{name}"]["/".join(rest)])
        name = path.split("/resolve/")[1].partition("/")[2]
        if name not in self.hub.files[repo]:
            return self.answer(404, b"", **{"X-Error-Code": "EntryNotFound"})
        content = self.hub.files[repo][name]
        more = {
            "X-Repo-Commit": self.hub.commit(repo),
            "X-Linked-Size": str(len(content)),
            "X-Linked-Etag": f'"{hashlib.sha256(content).hexdigest()}"',
        }
        if self.command == "HEAD":
            return self.answer(200, content, **more)
        return self.answer(302, b"", Location=f"{self.hub.url}/blob/{repo}/{name}", **more)

    def content(self, content: bytes) -> None:
        etag = f'"{hashlib.sha256(content).hexdigest()}"'
        if self.headers.get("if-none-match") == etag:
            self.answer(304, b"", ETag=etag)
            return
        start = int(self.headers.get("range", "bytes=0-").split("=")[1].split("-")[0])
        part = content[start:]
        if self.hub.altered:
            part = bytes(byte ^ 1 for byte in part)
        more = (
            {"Content-Range": f"bytes {start}-{len(content) - 1}/{len(content)}"} if start else {}
        )
        self.answer(206 if start else 200, part, ETag=etag, **more)

    def answer(self, status: int, body: bytes, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        if self.hub.cut and "/blob/" in self.path:
            self.wfile.write(body[: self.hub.cut.pop(0)])
            self.wfile.flush()
            self.connection.close()
            self.close_connection = True
            return
        self.wfile.write(body)


@contextmanager
def stand_in(files: dict[str, dict[str, bytes]]) -> Iterator[StandIn]:
    hub = StandIn(files)
    handler = type("HubHandler", (Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, args=[0.01], daemon=True)
    thread.start()
    yield hub
    server.shutdown()
    server.server_close()


def entry(path: str, content: bytes) -> dict[str, Any]:
    digest = hashlib.sha256(content).hexdigest()
    return {
        "rfilename": path, "size": len(content), "blobId": digest[:40],
        "lfs": {"sha256": digest, "size": len(content), "pointerSize": 134},
    }  # fmt: skip
