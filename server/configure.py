"""From the settings to what each part takes: the engine, the endpoints, the listener."""

from __future__ import annotations

import ipaddress
import json
import ssl
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.grammar.constraint import Constraint, Kind
from gguf_serve.engine.media.limits import MediaLimits
from gguf_serve.engine.options import ControlVectors, EngineOptions, RopeOptions
from gguf_serve.engine.request import SamplingParams
from gguf_serve.engine.sampling.names import parse_samplers
from gguf_serve.server.app import Cors
from gguf_serve.server.http.connections import Limits, Network, room_for_connections
from gguf_serve.server.http.fetch import Fetcher
from gguf_serve.server.options.option_types import split_commas
from gguf_serve.server.options.settings import Settings
from gguf_serve.server.requests.fields import Defaults


class SettingsError(Exception):
    """An option's value that cannot be used; the message names the option."""


def engine_options(settings: Settings) -> EngineOptions:
    return EngineOptions(
        n_ctx=settings.ctx_size,
        n_batch=settings.batch_size,
        n_ubatch=settings.ubatch_size,
        n_parallel=settings.parallel,
        kv_unified=settings.kv_unified,
        n_gpu_layers=settings.n_gpu_layers,
        flash_attn=settings.flash_attn,
        cache_type_k=settings.cache_type_k,
        cache_type_v=settings.cache_type_v,
        context_shift=settings.context_shift,
        swa_full=settings.swa_full,
        override_kv=sum(settings.override_kv, ()),
        check_tensors=settings.check_tensors,
        rope=rope_options(settings),
        adapters=adapters(settings),
        control=ControlVectors(
            scaled_files(settings.control_vector, settings.control_vector_scaled),
            settings.control_vector_layer_range,
        ),
        ctx_checkpoints=settings.ctx_checkpoints,
        checkpoint_min_step=settings.checkpoint_min_step,
        cache_ram_mib=settings.cache_ram,
        device=settings.device,
        split_mode=settings.split_mode,
        tensor_split=settings.tensor_split,
        main_gpu=settings.main_gpu,
        override_tensor=tuple(split_commas(settings.override_tensor)),
        cpu_moe=settings.cpu_moe,
        n_cpu_moe=settings.n_cpu_moe,
        kv_offload=settings.kv_offload,
        fit=settings.fit == "on",
        fit_target=settings.fit_target,
        fit_ctx=settings.fit_ctx,
        n_threads=settings.threads,
        mmproj=projector(settings),
        mmproj_device=settings.mmproj_device if settings.mmproj_offload else "none",
        image_min_tokens=settings.image_min_tokens,
        image_max_tokens=settings.image_max_tokens,
        media_limits=MediaLimits(settings.media_max_pixels, float(settings.media_max_seconds)),
        chat_template=chat_template(settings),
        kernel_family=settings.kernel_family,
        activation_type=activation_type(settings),
        profile=settings.profile,
    )


def activation_type(settings: Settings) -> str:
    """The demonstration model is so small that rounding to 8 bits shows, and fast without it."""
    wanted = settings.activation_type
    return "int16" if settings.demo and wanted == "auto" else wanted


def projector(settings: Settings) -> Path | None:
    """The projector file; limits of images that could not act are refused."""
    given = settings.mmproj if settings.use_mmproj else None
    least, most = settings.image_min_tokens, settings.image_max_tokens
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


def adapters(settings: Settings) -> tuple[tuple[Path, float], ...]:
    found = scaled_files(settings.lora, settings.lora_scaled)
    off = settings.lora_init_without_apply
    return tuple((path, 0.0) for path, _ in found) if off else found


def scaled_files(
    plain: Sequence[str], scaled: Sequence[tuple[tuple[str, float], ...]]
) -> tuple[tuple[Path, float], ...]:
    """Files with their factors; those without one first."""
    ones = [(path, 1.0) for path in split_commas(plain)]
    return tuple((Path(path), scale) for path, scale in [*ones, *sum(scaled, ())])


def rope_options(settings: Settings) -> RopeOptions:
    if settings.rope_scale and settings.rope_freq_scale:
        raise SettingsError("--rope-scale and --rope-freq-scale cannot both be given")
    return RopeOptions(
        kind=settings.rope_scaling,
        base=settings.rope_freq_base,
        factor=1 / settings.rope_freq_scale if settings.rope_freq_scale else settings.rope_scale,
        original_context=settings.yarn_orig_ctx,
        extrapolation=settings.yarn_ext_factor,
        attention_factor=settings.yarn_attn_factor,
        beta_slow=settings.yarn_beta_slow,
        beta_fast=settings.yarn_beta_fast,
    )


def chat_template(settings: Settings) -> str | None:
    if settings.chat_template_file is None:
        return settings.chat_template
    if settings.chat_template is not None:
        raise SettingsError("--chat-template and --chat-template-file cannot both be given")
    return read_text("--chat-template-file", settings.chat_template_file)


def request_defaults(settings: Settings) -> Defaults:
    return Defaults(
        sampling=sampling_defaults(settings),
        max_tokens=settings.n_predict,
        stop=settings.reverse_prompt,
        special=settings.special,
        cache_prompt=settings.cache_prompt,
        n_keep=settings.keep,
        prefill_assistant=settings.prefill_assistant,
        template_kwargs={
            "preserve_reasoning": settings.reasoning_preserve,
            **template_kwargs(settings.chat_template_kwargs),
        },
        constraint=default_constraint(settings),
        skip_chat_parsing=settings.skip_chat_parsing,
        spm_infill=settings.spm_infill,
        thinks={"on": True, "off": False}.get(settings.reasoning),
        reasoning_format=settings.reasoning_format,
        reasoning_effort=settings.reasoning_effort,
        reasoning_budget=settings.reasoning_budget,
        reasoning_budget_message=settings.reasoning_budget_message,
    )


def default_constraint(settings: Settings) -> Constraint | None:
    """What every answer must match, unless its request says otherwise."""
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
        return Constraint(kind, read_text(option, path) if path else text or "")
    return None


def sampling_defaults(settings: Settings) -> SamplingParams:
    optional: dict[str, Any] = {}
    if settings.dry_sequence_breaker:
        breakers = settings.dry_sequence_breaker
        optional["dry_sequence_breakers"] = () if breakers == ("none",) else breakers
    if settings.sampler_seq is not None or settings.samplers is not None:
        optional["samplers"] = sampler_order(settings)
    params = SamplingParams(
        seed=settings.seed,
        temperature=settings.temp,
        dynatemp_range=settings.dynatemp_range,
        dynatemp_exponent=settings.dynatemp_exp,
        top_k=settings.top_k,
        top_p=settings.top_p,
        min_p=settings.min_p,
        typical_p=settings.typical_p,
        top_n_sigma=settings.top_n_sigma,
        xtc_probability=settings.xtc_probability,
        xtc_threshold=settings.xtc_threshold,
        dry_multiplier=settings.dry_multiplier,
        dry_base=settings.dry_base,
        dry_allowed_length=settings.dry_allowed_length,
        dry_penalty_last_n=settings.dry_penalty_last_n,
        repeat_penalty=settings.repeat_penalty,
        repeat_last_n=settings.repeat_last_n,
        presence_penalty=settings.presence_penalty,
        frequency_penalty=settings.frequency_penalty,
        mirostat=settings.mirostat,
        mirostat_tau=settings.mirostat_ent,
        mirostat_eta=settings.mirostat_lr,
        logit_bias=settings.logit_bias,
        ignore_eos=settings.ignore_eos,
        **optional,
    )
    try:
        params.check()
    except RequestError as error:
        raise SettingsError(str(error)) from None
    return params


def sampler_order(settings: Settings) -> tuple[str, ...]:
    flag, given = "--sampler-seq", settings.sampler_seq or ""  # type: str, str | list[str]
    if settings.samplers is not None:
        flag, given = "--samplers", [name for name in settings.samplers.split(";") if name]
    try:
        return parse_samplers(given)
    except RequestError as error:
        raise SettingsError(f"{flag}: {error}") from None


def template_kwargs(text: str | None) -> dict[str, Any]:
    try:
        value = json.loads(text or "{}")
    except ValueError as error:
        raise SettingsError(f"--chat-template-kwargs: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise SettingsError("--chat-template-kwargs: expected a JSON object")
    return value


def api_keys(settings: Settings) -> list[str]:
    """Those of both options. A server that was meant to be closed must not be open."""
    keys = split_commas([settings.api_key or ""])
    if settings.api_key is not None and not keys:
        raise SettingsError(f"--api-key: there is no key in {settings.api_key!r}")
    if settings.api_key_file is not None:
        lines = map(str.strip, read_text("--api-key-file", settings.api_key_file).splitlines())
        from_file = [line for line in lines if line and not line.startswith("#")]
        if not from_file:
            raise SettingsError(f"--api-key-file: {settings.api_key_file} has no key")
        keys += from_file
    return keys


def api_prefix(given: str) -> str:
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
        proxies=tuple(map(proxy, split_commas(settings.forwarded_allow_ips))),
    )


def proxy(given: str) -> Network:
    try:
        return ipaddress.ip_network(given)
    except ValueError as error:
        message = f"--forwarded-allow-ips: {given!r} is no address and no network: {error}"
        raise SettingsError(message) from None


def cors(settings: Settings) -> Cors:
    return Cors(
        origins=split_commas(settings.cors_origins),
        methods=split_commas(settings.cors_methods),
        headers=split_commas(settings.cors_headers),
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
