"""GET and POST /tools, and who may ask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import httpx
import pytest

from gguf_serve.server.tools.mcp_config import McpServer
from gguf_serve.server.tools.toolbox import Toolbox

NAMES = ["read_file", "write_file"]


def test_off_by_default(serve: Any, fakes: Any) -> None:
    url = serve(fakes.engine())
    assert httpx.get(f"{url}/tools").status_code == 501
    answer = httpx.post(f"{url}/tools", json={"tool": "get_info"})
    assert answer.status_code == 501
    assert "--tools" in answer.json()["error"]["message"]


def test_tools(serve: Any, fakes: Any, mcp_url: str, tmp_path: Path) -> None:
    url = serve(fakes.engine(), tools=Toolbox(NAMES, {"n": McpServer(url=mcp_url)})) + "/tools"
    listed = httpx.get(url).json()
    assert [tool["tool"] for tool in listed][:3] == ["read_file", "write_file", "n_search"]
    assert [tool["type"] for tool in listed][:3] == ["server", "server", "mcp"]
    assert listed[1]["permissions"] == {"write": True}
    assert listed[2]["definition"]["function"]["name"] == "n_search"
    made = {"tool": "write_file", "params": {"path": "x", "content": "hello"}}
    written = httpx.post(url, json=made, headers={"x-tool-cwd": str(tmp_path)})
    assert written.json() == {"result": "file written successfully", "path": "x", "bytes": 5}
    asked = {"tool": "read_file", "params": {"path": str(tmp_path / "x")}}
    assert httpx.post(url, json=asked).json() == {"plain_text_response": "hello"}
    asked = {"tool": "n_add", "params": {"a": 2, "b": 2}}
    assert httpx.post(url, json=asked).json()["plain_text_response"] == "4"
    assert httpx.post(url, json={"tool": "get_info"}).status_code == 404


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"content-type": "text/plain"}, 415), ({"host": "evil.example"}, 401),
     ({"x-tool-runtime": "docker:x"}, 400), ({"x-tool-cwd": "/no/such"}, 400),
     ({"host": "localhost"}, 200), ({"host": "[::1]:80"}, 200)],
)  # fmt: skip
def test_pages_of_others_cannot_use_them(
    serve: Any, fakes: Any, tmp_path: Path, headers: dict[str, str], status: int
) -> None:
    url = serve(fakes.engine(), tools=Toolbox(NAMES)) + "/tools"
    body = b'{"tool": "write_file", "params": {"path": "%s", "content": ""}}'
    path = tmp_path / "x"
    sent = {"content-type": "application/json", **headers}
    answer = httpx.post(url, content=body % str(path).encode(), headers=sent)
    assert answer.status_code == status
    assert path.exists() == (status == 200)
