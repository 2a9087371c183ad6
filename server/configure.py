"""From the settings to what each part takes: the engine, the endpoints, the listener."""

from __future__ import annotations

import ipaddress
import json
import ssl
from collections.abc import Mapping, Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.grammar.constraint import Constraint, Kind
from gguf_serve.engine.grammar.trial import tried
from gguf_serve.engine.option_values import commas, unescaped
from gguf_serve.engine.options import NO_ROOM, AdapterRoom, EngineOptions, RopeOptions
from gguf_serve.engine.sampling_params import DEFAULT_SAMPLERS, SamplingParams, parse_samplers
from gguf_serve.server.app import Cors
from gguf_serve.server.batches.store import Store, StoreError
from gguf_serve.server.http.connections import Limits, Network, room_for_connections
from gguf_serve.server.http.fetch import Fetcher
from gguf_serve.server.http.key_limits import Limits as KeyLimits
from gguf_serve.server.http.key_limits import read_limits
from gguf_serve.server.options.request_defaults import Defaults
from gguf_serve.server.options.settings import Settings
from gguf_serve.server.speech.voices import read_voices
from gguf_serve.server.tools.host import NAMES
from gguf_serve.server.tools.mcp_config import McpServer, read_servers
from gguf_serve.server.tools.toolbox import Toolbox
from gguf_serve.server.tracing import Traces


class SettingsError(Exception):
    """An option's value that cannot be used; the message names the option."""


def problems(settings: Settings) -> list[str]:
    """What is wrong with options that are seen together, or with the files that they name."""
    found = unreadable(settings)
    model = settings.model or ""
    if settings.hf_repo or settings.mmproj_url or model.startswith("ollama:"):
        # The projector may come with the model.
        settings = replace(settings, mmproj=settings.mmproj or "its own")
    for part in (
        engine_options, request_defaults, check_constraint, warmup_body, api_keys, api_prefix,
        proxies, uses_https, key_limits, toolbox, voices,
    ):  # fmt: skip
        try:
            part(settings)
        except SettingsError as error:
            if str(error) not in found:  # several parts may read an option
                found.append(str(error))
    return found


def unreadable(settings: Settings) -> list[str]:
    """What is wrong with the models, projectors, n-grams, adapters and vectors that are files."""
    draft = None if settings.draft_repo else settings.engine.speculation.draft.model
    named = [
        ("-m", settings.model), ("--mmproj", settings.mmproj), ("-md", draft),
        ("--lookup-cache-static", settings.engine.speculation.static),
        *(("--lora", path) for path in settings.lora),
        *(("--lora-scaled", path) for path, _ in settings.lora_scaled),
        *(("--control-vector", path) for path in settings.control_vector),
        *(("--control-vector-scaled", path) for path, _ in settings.control_vector_scaled),
    ]  # fmt: skip
    found = []
    for option, path in named:
        if path is None or path.startswith("ollama:"):
            continue
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            found.append(f"{option}: cannot read {path}: {reason(error)}")
    return found


def engine_options(settings: Settings) -> EngineOptions:
    """The engine's own options, and what several of the server's say together."""
    given = settings.engine
    return replace(
        given,
        rope=rope_options(settings),
        adapters=adapters(settings),
        adapter_room=adapter_room(settings),
        control=replace(
            given.control,
            files=scaled_files(settings.control_vector, settings.control_vector_scaled),
        ),
        mmproj=projector(settings),
        mmproj_device=settings.mmproj_device if settings.mmproj_offload else "none",
        chat_template=chat_template(settings),
    )


def projector(settings: Settings) -> Path | None:
    """The projector file; limits of images that could not act are refused."""
    given = settings.mmproj if settings.use_mmproj else None
    least, most = settings.engine.image_min_tokens, settings.engine.image_max_tokens
    if given is None and settings.use_mmproj and (least or most):
        raise SettingsError("--image-min-tokens and --image-max-tokens need --mmproj")
    if least and most and least > most:
        raise SettingsError(f"--image-min-tokens {least} is more than --image-max-tokens {most}")
    return None if given is None else Path(given)


def media_fetcher(settings: Settings) -> Fetcher:
    folder = None if settings.media_path is None else Path(settings.media_path)
    return Fetcher(
        folder, settings.media_max_size << 20, float(settings.media_timeout),
        settings.media_allow_private,
    )  # fmt: skip


def voices(settings: Settings) -> Mapping[str, bytes]:
    """Sounds of those who may speak, by their names."""
    try:
        return read_voices(
            settings.tts_speaker_file, settings.voices, settings.media_max_size << 20
        )
    except ValueError as error:
        raise SettingsError(str(error)) from None


def adapters(settings: Settings) -> tuple[tuple[Path, float], ...]:
    found = scaled_files(settings.lora, settings.lora_scaled)
    off = settings.lora_init_without_apply
    return tuple((path, 0.0) for path, _ in found) if off else found


def adapter_room(settings: Settings) -> AdapterRoom:
    if settings.lora_runtime is None:
        return NO_ROOM
    return AdapterRoom(settings.max_loras, settings.max_lora_rank)


def scaled_files(
    plain: Sequence[str], scaled: Sequence[tuple[str, float]]
) -> tuple[tuple[Path, float], ...]:
    """Files with their factors; those without one first."""
    ones = [(path, 1.0) for path in plain]
    return tuple((Path(path), scale) for path, scale in [*ones, *scaled])


def rope_options(settings: Settings) -> RopeOptions:
    given, reciprocal = settings.engine.rope, settings.rope_freq_scale
    if given.factor and reciprocal:
        raise SettingsError("--rope-scale and --rope-freq-scale cannot both be given")
    return replace(given, factor=1 / reciprocal) if reciprocal else given


def chat_template(settings: Settings) -> str | None:
    if settings.chat_template_file is None:
        return settings.chat_template
    if settings.chat_template is not None:
        raise SettingsError("--chat-template and --chat-template-file cannot both be given")
    return read_text("--chat-template-file", settings.chat_template_file)


def warmup_body(settings: Settings) -> dict[str, Any] | None:
    """The conversation of --warmup-prompt, as the body of a chat completion."""
    path = settings.warmup_prompt
    if path is None:
        return None
    if settings.cache_key_isolation:
        raise SettingsError(
            "--warmup-prompt and --cache-key-isolation cannot both be given: keys share no prefix"
        )
    if settings.compile_only and settings.engine.cache_disk is None:
        raise SettingsError("--warmup-prompt with --compile-only needs --cache-disk")
    text = read_text("--warmup-prompt", path)
    if not path.endswith(".json"):
        return {"messages": [{"role": "system", "content": text.removesuffix("\n")}]}
    body = from_json("--warmup-prompt", path, text)
    if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
        raise SettingsError(
            f"--warmup-prompt: {path} has no messages: expected the body of a chat completion"
        )
    return body


def request_defaults(settings: Settings) -> Defaults:
    stop = settings.defaults.stop
    return replace(
        settings.defaults,
        sampling=sampling_defaults(settings),
        stop=tuple(map(unescaped, stop)) if settings.escape else stop,
        template_kwargs={
            "preserve_reasoning": settings.reasoning_preserve,
            **template_kwargs(settings.chat_template_kwargs),
        },
        constraint=default_constraint(settings),
    )


def default_constraint(settings: Settings) -> Constraint | None:
    """What every answer must match, unless its request says otherwise."""
    found = _constraint(settings)
    return None if found is None else found[1]


def check_constraint(settings: Settings) -> None:
    """SettingsError for one that cannot be enforced, which takes up to seconds to find out."""
    if (found := _constraint(settings)) is None:
        return
    option, constraint = found
    try:
        tried(constraint.kind, constraint.text)
    except RequestError as error:
        raise SettingsError(f"{option}: {error}") from None


def _constraint(settings: Settings) -> tuple[str, Constraint] | None:
    """With the option that gives it."""
    given: tuple[tuple[str, Kind, str | None, str | None], ...] = (
        ("--grammar", "gbnf", settings.grammar, None),
        ("--grammar-file", "gbnf", None, settings.grammar_file),
        ("--json-schema", "json_schema", settings.json_schema, None),
        ("--json-schema-file", "json_schema", None, settings.json_schema_file),
    )
    found = [(option, kind, text, path) for option, kind, text, path in given if text or path]
    if len(found) > 1:
        raise SettingsError(f"{found[0][0]} and {found[1][0]} cannot both be given")
    for option, kind, text, path in found:
        written = read_text(option, path) if path else text or ""
        if kind == "json_schema":
            from_json(option, f"{written!r:.100}", written)
        return option, Constraint(kind, written)
    return None


def from_json(option: str, source: str, text: str) -> Any:
    """``source``: what the text is called if it cannot be read."""
    try:
        return json.loads(text)
    except ValueError as error:
        raise SettingsError(f"{option}: {source} is not JSON: {error}") from None


def sampling_defaults(settings: Settings) -> SamplingParams:
    given = settings.defaults.sampling
    if settings.escape:
        breakers = tuple(map(unescaped, given.dry_sequence_breakers))
        given = replace(given, dry_sequence_breakers=breakers)
    if settings.sampler_seq is None or given.samplers != DEFAULT_SAMPLERS:
        return given
    try:
        return replace(given, samplers=parse_samplers(settings.sampler_seq))
    except RequestError as error:
        raise SettingsError(f"--sampler-seq: {error}") from None


def template_kwargs(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise SettingsError(f"--chat-template-kwargs: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise SettingsError(f"--chat-template-kwargs: expected a JSON object, not {value!r:.100}")
    return value


def api_keys(settings: Settings) -> list[str]:
    """Those of both options. A server that was meant to be closed must not be open."""
    keys = list(commas(settings.api_key or ""))
    if settings.api_key is not None and not keys:
        raise SettingsError(f"--api-key: there is no key in {settings.api_key!r}")
    if settings.api_key_file is not None:
        lines = map(str.strip, read_text("--api-key-file", settings.api_key_file).splitlines())
        from_file = [line for line in lines if line and not line.startswith("#")]
        if not from_file:
            raise SettingsError(f"--api-key-file: {settings.api_key_file} has no key")
        keys += from_file
    if settings.cache_key_isolation and not keys:
        raise SettingsError("--cache-key-isolation needs --api-key or --api-key-file")
    return keys


def key_limits(settings: Settings) -> KeyLimits | None:
    if settings.limits is None:
        return None
    try:
        return read_limits(read_text("--limits", settings.limits))
    except ValueError as error:
        raise SettingsError(f"--limits: {settings.limits}: {error}") from None


def toolbox(settings: Settings) -> Toolbox:
    """The tools that the server runs. They are nobody's who only knows its address."""
    names = NAMES if "all" in settings.tools else settings.tools
    unknown = sorted(set(names) - set(NAMES))
    if unknown:
        raise SettingsError(
            f"--tools: there is no tool {unknown[0]!r}: expected all, or {', '.join(NAMES)}"
        )
    servers = mcp_servers(settings)
    if servers and find_spec("mcp") is None:
        raise SettingsError("MCP servers need the package mcp: pip install 'gguf-serve[tools]'")
    if settings.web_search is not None and not servers:
        raise SettingsError("--web-search needs --mcp-servers-config")
    if (names or servers) and not all(map(is_own, settings.host)) and not api_keys(settings):
        raise SettingsError(
            f"--tools and --mcp-servers-config with --host {','.join(settings.host)} need --api-key"
        )
    return Toolbox(names, servers, settings.web_search)


def mcp_servers(settings: Settings) -> dict[str, McpServer]:
    path, text = settings.mcp_servers_config, settings.mcp_servers_json
    found: dict[str, McpServer] = {}
    for option, given in (
        ("--mcp-servers-config", read_text("--mcp-servers-config", path) if path else None),
        ("--mcp-servers-json", text),
    ):
        try:
            servers = {} if given is None else read_servers(given)
        except ValueError as error:
            raise SettingsError(f"{option}: {error}") from None
        twice = found.keys() & servers.keys()
        if twice:
            raise SettingsError(f"{option}: {min(twice)} is in --mcp-servers-config, too")
        found |= servers
    return found


def is_own(host: str) -> bool:
    """Whether only this machine can reach it."""
    if host == "localhost" or host.endswith(".sock"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def response_folder(settings: Settings) -> Path | None:
    """Where responses are kept beside the KV cache that their conversations have on disk."""
    folder = settings.engine.cache_disk
    return None if folder is None else Path(folder) / "responses"


def batch_store(settings: Settings) -> Store | None:
    if settings.batch_path is None:
        return None
    try:
        return Store(Path(settings.batch_path), settings.batch_storage << 20)
    except StoreError as error:
        raise SettingsError(f"--batch-path: {error}") from None


def traces(settings: Settings) -> Traces | None:
    endpoint = settings.otlp_endpoint
    if endpoint is None:
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise SettingsError(f"--otlp-endpoint: {endpoint} is no URL of HTTP")
    try:
        return Traces(endpoint)
    except ImportError:
        message = "--otlp-endpoint needs OpenTelemetry: pip install 'gguf-serve[traces]'"
        raise SettingsError(message) from None


def api_prefix(settings: Settings) -> str:
    given = settings.api_prefix
    if given and not given.startswith("/"):
        raise SettingsError(f"--api-prefix: {given} does not begin with /")
    return given.rstrip("/")


def client_limits(settings: Settings, n_files: int) -> Limits:
    """``n_files``: how many files this process may have open."""
    n_connections = room_for_connections(settings.max_connections, n_files)
    return Limits(
        connections=n_connections,
        # Those of one address never take all.
        per_address=min(settings.max_connections_per_address, max(n_connections * 3 // 4, 1)),
        request_line=settings.max_request_line << 10,
        header=settings.max_header << 10,
        header_count=settings.max_header_count,
        header_timeout=settings.header_timeout,
        idle_timeout=settings.idle_timeout,
        send_timeout=settings.send_timeout,
        proxies=proxies(settings),
    )


def proxies(settings: Settings) -> tuple[Network, ...]:
    return tuple(map(proxy, settings.forwarded_allow_ips))


def proxy(given: str) -> Network:
    try:
        return ipaddress.ip_network(given)
    except ValueError as error:
        message = f"--forwarded-allow-ips: {given!r} is no address and no network: {error}"
        raise SettingsError(message) from None


def cors(settings: Settings) -> Cors:
    """With tools the pages of this host alone, unless others are named."""
    origins = settings.cors_origins
    if toolbox(settings) and origins == ("*",):
        origins = ("localhost",)
    return Cors(
        origins=origins,
        methods=settings.cors_methods,
        headers=settings.cors_headers,
        credentials=settings.cors_credentials,
    )


def uses_https(settings: Settings) -> bool:
    """Whether key and certificate are given; SettingsError if they cannot be used."""
    key, certificate = settings.ssl_key_file, settings.ssl_cert_file
    if key is None and certificate is None:
        return False
    if key is None or certificate is None:
        raise SettingsError("--ssl-key-file and --ssl-cert-file must be given together")
    try:
        ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        message = f"--ssl-key-file, --ssl-cert-file: cannot use {key} and {certificate}"
        raise SettingsError(f"{message}: {reason(error)}") from None
    return True


def read_text(option: str, path: str) -> str:
    try:
        with open(path, encoding="utf-8") as file:
            return file.read()
    except (OSError, UnicodeDecodeError) as error:
        raise SettingsError(f"{option}: cannot read {path}: {reason(error)}") from None


def reason(error: Exception) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)
