"""Options of the listener, of keys and pages, of which endpoints there are. A part of Settings."""

from __future__ import annotations

from dataclasses import dataclass

from gguf_serve.engine.option import (
    COUNT,
    FILE,
    FOLDER,
    NUMBER,
    OR_ALL,
    TEXT,
    Parsed,
    Whole,
    option,
)
from gguf_serve.engine.option_values import commas
from gguf_serve.server.options.limit_settings import SERVER, LimitSettings

LIST = Parsed("TEXT,...", commas)
TOOLS = "Tools that the server runs"


# fmt: off
@dataclass(frozen=True, slots=True, kw_only=True)
class HttpSettings(LimitSettings):
    host: tuple[str, ...] = option(
        "--host", group=SERVER, env="HOST", type=LIST, multiple=True,
        default=("127.0.0.1",), help="address, or path of a Unix socket (*.sock); repeatable",
    )
    port: int = option(
        "--port", group=SERVER, env="PORT", type=Whole(0, 65535), default=8080,
        help="0: any free one",
    )
    reuse_port: bool = option(
        "--reuse-port", group=SERVER, env="REUSE_PORT", default=False,
        help="share the port with other servers that say so: connections are spread over them",
    )
    api_key: str | None = option(
        "--api-key", group=SERVER, env="LLAMA_API_KEY", type=TEXT, default=None,
        help="key that requests must give; several with commas between",
    )
    api_key_file: str | None = option(
        "--api-key-file", group=SERVER, env="API_KEY_FILE", type=FILE, default=None,
        help="file with a key on each line, which SIGHUP has read again",
    )
    cache_key_isolation: bool = option(
        "--cache-key-isolation", group=SERVER, env="GGUF_SERVE_CACHE_KEY_ISOLATION", default=False,
        help="requests with different API keys share no cached prefixes",
    )
    api_prefix: str = option(
        "--api-prefix", group=SERVER, env="API_PREFIX", type=TEXT, default="",
        help="what all paths begin with, such as /llm",
    )
    ssl_key_file: str | None = option(
        "--ssl-key-file", group=SERVER, env="SSL_KEY_FILE", type=FILE, default=None,
        help="private key, in PEM form, to serve HTTPS with",
    )
    ssl_cert_file: str | None = option(
        "--ssl-cert-file", group=SERVER, env="SSL_CERT_FILE", type=FILE, default=None,
        help="certificate, in PEM form",
    )
    cors_origins: tuple[str, ...] = option(
        "--cors-origins", group=SERVER, env="CORS_ORIGINS", type=LIST, multiple=True,
        default=("*",),
        help="origins of pages that may use the server; localhost: all on this host",
    )
    cors_methods: tuple[str, ...] = option(
        "--cors-methods", group=SERVER, env="CORS_METHODS", type=LIST, multiple=True,
        default=("GET", "POST", "DELETE", "OPTIONS"), help="methods that such pages may use",
    )
    cors_headers: tuple[str, ...] = option(
        "--cors-headers", group=SERVER, env="CORS_HEADERS", type=LIST, multiple=True,
        default=("*",), help="headers that such pages may send",
    )
    cors_credentials: bool = option(
        "--cors-credentials/--no-cors-credentials", group=SERVER, env="CORS_CREDENTIALS",
        default=False, help="let such pages send cookies and keys of the browser",
    )
    timeout: int = option(
        "-to", "--timeout", group=SERVER, env="TIMEOUT", type=COUNT, default=3600,
        help="seconds for a whole body, or until a piece of a stream is taken; --body-timeout and "
        "--send-timeout end sooner what stands still",
    )
    ui: bool = option(
        "--ui/--no-ui", "--webui/--no-webui", group=SERVER, env="UI", default=True,
        help="a page to talk to the model, at /",
    )
    path: str | None = option(
        "--path", group=SERVER, env="STATIC_PATH", type=FOLDER, default=None,
        help="a folder to serve at / in place of that page",
    )
    metrics: bool = option(
        "--metrics/--no-metrics", group=SERVER, env="ENDPOINT_METRICS", default=False,
        help="numbers for Prometheus at /metrics",
    )
    otlp_endpoint: str | None = option(
        "--otlp-endpoint", group=SERVER, env="GGUF_SERVE_OTLP_ENDPOINT", type=TEXT, metavar="URL",
        default=None, help="collector that is sent a span of each request by OTLP over HTTP, as "
        "http://localhost:4318",
    )
    props: bool = option(
        "--props/--no-props", group=SERVER, env="ENDPOINT_PROPS", default=False,
        help="POST /props",
    )
    slots: bool = option(
        "--slots/--no-slots", group=SERVER, env="ENDPOINT_SLOTS", default=True,
        help="the state of slots, with their requests' parameters, at /slots",
    )
    slot_save_path: str | None = option(
        "--slot-save-path", group=SERVER, env="GGUF_SERVE_SLOT_SAVE_PATH", type=FOLDER,
        default=None, help="folder for what slots have cached, to be saved to and restored from",
    )
    batch_path: str | None = option(
        "--batch-path", group=SERVER, env="GGUF_SERVE_BATCH_PATH", type=Parsed("FOLDER", str),
        default=None, help="folder for /v1/files and /v1/batches, which are not there without it; "
        "made if it is not there",
    )
    sleep_idle_seconds: int = option(
        "--sleep-idle-seconds", group=SERVER, env="GGUF_SERVE_SLEEP_IDLE_SECONDS", type=OR_ALL,
        default=-1,
        help="free the model when nobody asks for so long, and load it for the next; -1: never",
    )
    sse_ping_interval: float = option(
        "--sse-ping-interval", group=SERVER, env="SSE_PING_INTERVAL", type=NUMBER,
        default=30.0, help="seconds of silence before a comment in a stream; -1: never",
    )
    tools: tuple[str, ...] = option(
        "--tools", group=TOOLS, env="TOOLS", type=Parsed("NAME,...", commas), multiple=True,
        default=(), help="tools at /tools that read, write and run what the server's user may: "
        "read_file, file_glob_search, grep_search, exec_shell_command, write_file, edit_file, "
        "get_info, or all; whoever can use the server can use them",
    )
    mcp_servers_config: str | None = option(
        "--mcp-servers-config", group=TOOLS, env="MCP_SERVERS_CONFIG", type=FILE, default=None,
        help="JSON file with MCP servers (mcpServers), whose tools are at /tools, too",
    )
    mcp_servers_json: str | None = option(
        "--mcp-servers-json", group=TOOLS, env="MCP_SERVERS_JSON", type=TEXT, metavar="JSON",
        default=None, help="the same as a text",
    )
    web_search: str | None = option(
        "--web-search", group=TOOLS, env="GGUF_SERVE_WEB_SEARCH", type=TEXT, metavar="SERVER_TOOL",
        default=None, help="the tool of an MCP server that searches the web when the model calls "
        "web_search, which Anthropic's and OpenAI's clients ask for",
    )
# fmt: on
