"""A stand-in MCP server, of the standard library: by stdin and stdout, or by HTTP on loopback."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

PAGES = [
    {"title": "Swallows", "url": "https://birds.example/swallows", "content": "11 m/s"},
    {"title": "Coconuts", "url": "https://nuts.example/coconuts", "content": "no wings"},
]


def schema(**properties):
    return {"type": "object", "properties": properties, "required": list(properties)}


TEXT, NUMBER = {"type": "string"}, {"type": "integer"}
TOOLS = [
    {"name": "search", "description": "Search.", "inputSchema": schema(query=TEXT)},
    {"name": "add", "description": "The sum.", "inputSchema": schema(a=NUMBER, b=NUMBER)},
    {"name": "sleep", "description": "Late.", "inputSchema": schema()},
]


def call(name, arguments):
    if name == "sleep":
        time.sleep(3)
    if name == "add":
        return str(arguments["a"] + arguments["b"])
    if arguments.get("query") == "broken":
        raise ValueError("the index is gone")
    return json.dumps({"query": arguments.get("query"), "results": PAGES})


def answered(asked):
    method, params = asked["method"], asked.get("params", {})
    if method == "initialize":
        return {
            "protocolVersion": params["protocolVersion"],
            "capabilities": {"tools": {}},
            "serverInfo": {"name": "notes", "version": "1"},
        }
    if method == "tools/list":
        return {"tools": TOOLS}
    if method != "tools/call":
        return None
    try:
        text, failed = call(params["name"], params.get("arguments") or {}), False
    except Exception as error:
        text, failed = f"{type(error).__name__}: {error}", True
    return {"content": [{"type": "text", "text": text}], "isError": failed}


def reply(asked):
    result = answered(asked)
    outcome = {"result": result} if result else {"error": {"code": -32601, "message": "unknown"}}
    return json.dumps({"jsonrpc": "2.0", "id": asked["id"], **outcome})


class Handler(BaseHTTPRequestHandler):
    def do_POST(self):
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        body = reply(asked).encode() if "id" in asked else b""
        self.send_response(200 if body else 202)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        with contextlib.suppress(OSError):
            self.wfile.write(body)

    def log_message(self, *given):
        pass


if sys.argv[1:] == ["http"]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    print(server.server_port, flush=True)
    server.serve_forever()
for line in sys.stdin:
    asked = json.loads(line)
    if "id" in asked:
        print(reply(asked), flush=True)
    if asked.get("params", {}).get("arguments", {}).get("a") == 666:
        sys.exit()
