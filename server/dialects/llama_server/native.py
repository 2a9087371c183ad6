"""llama-server's own endpoints: health, tokens, templates, properties."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gguf_serve.engine.errors import TooManyTokensError
from gguf_serve.engine.request import Request
from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import ApiError, invalid, json_response, not_enabled
from gguf_serve.server.interface import Tokenizer
from gguf_serve.server.options.request_defaults import Defaults
from gguf_serve.server.requests.chat import rendered, template_caps
from gguf_serve.server.requests.conversation import CHAT_ALSO, Chat, read_chat
from gguf_serve.server.requests.fields import convert
from gguf_serve.server.requests.media import SHOWN_MARKER, with_markers
from gguf_serve.server.requests.parameters import generation_settings
from gguf_serve.server.requests.prompt_objects import n_characters
from gguf_serve.server.requests.prompts import MAX_TOKENS, checked_token, encode_mixed
from gguf_serve.server.requests.service import Service
from gguf_serve.server.speech.reading import voice_names
from gguf_serve.server.version import BUILD_INFO

MAX_TEXT = 2**24  # bytes of the text of given tokens


def routes(service: Service) -> list[BaseRoute]:
    return [
        Route("/health", partial(health, service)),
        Route("/v1/health", partial(health, service)),
        Post("/tokenize", partial(tokenize, service), TokenizeFields),
        Post("/detokenize", partial(detokenize, service), DetokenizeFields),
        Route("/tokenizer_info", partial(tokenizer_info, service)),
        Post("/apply-template", partial(apply_template, service), Chat, also=CHAT_ALSO),
        Route("/props", partial(props, service)),
        Post("/props", partial(change_props, service)),
    ]


async def health(service: Service, http: HttpRequest) -> Response:
    """Green only while requests are answered, and with numbers; the gate answers while the model
    loads."""
    if service.is_draining:
        raise ApiError("unavailable_error", "The server is ending")
    if not (service.engine.healthy or service.is_sleeping):
        raise ApiError("unavailable_error", service.engine.fault or "The engine has stopped")
    return json_response({"status": "ok"})


class TokenizeFields(msgspec.Struct):
    """``prompt`` and ``add_special_tokens`` are vLLM's, which lm-eval asks with."""

    content: str | list[str | int] | None = None
    add_special: bool = False
    parse_special: bool = True
    with_pieces: bool = False
    prompt: str | None = None
    add_special_tokens: bool = True


class DetokenizeFields(msgspec.Struct):
    tokens: list[int]


async def tokenize(service: Service, http: HttpRequest) -> Response:
    """The tokens of a text."""
    fields = convert(await service.read_object(http), TokenizeFields)
    if fields.content is None and fields.prompt is None:
        raise invalid("Field 'content' is required")
    if fields.content is None:
        return await vllm_tokens(service, fields)
    n = n_characters([fields.content])
    return await service.read_text(n, tokens, fields, service.engine.tokenizer)


async def vllm_tokens(service: Service, fields: TokenizeFields) -> Response:
    text, tokenizer = fields.prompt or "", service.engine.tokenizer
    arguments = "prompt", text, tokenizer, fields.add_special_tokens
    ids = await service.read_text(len(text), checked_tokens, *arguments)
    return json_response({"count": len(ids), "max_model_len": service.engine.n_ctx, "tokens": ids})


def tokens(fields: TokenizeFields, tokenizer: Tokenizer) -> Response:
    """The ids of a text, or objects with their pieces: written once for all places of a token."""
    given = "content", fields.content, tokenizer, fields.add_special, fields.parse_special
    ids = checked_tokens(*given)
    if not fields.with_pieces:
        return json_response({"tokens": ids})
    shown = {
        id: msgspec.Raw(
            msgspec.json.encode({"id": id, "piece": piece_value(tokenizer.piece(id, special=True))})
        )
        for id in set(ids)
    }
    return json_response({"tokens": [shown[id] for id in ids]})


def checked_tokens(
    field: str, content: Any, tokenizer: Tokenizer, add_special: bool, parse_special: bool = True
) -> list[int]:
    try:
        ids = encode_mixed(field, content, tokenizer, add_special, parse_special, most=MAX_TOKENS)
    except TooManyTokensError as error:
        raise invalid(f"Field '{field}': {error}") from None
    if len(ids) > MAX_TOKENS:
        raise invalid(f"Field '{field}': the text has {len(ids)} tokens, more than {MAX_TOKENS}")
    return ids


def piece_value(piece: bytes) -> str | list[int]:
    """The text of a piece, or its bytes where it cuts through a character."""
    try:
        return piece.decode()
    except UnicodeDecodeError:
        return list(piece)


async def detokenize(service: Service, http: HttpRequest) -> Response:
    """The text of tokens."""
    data = await service.read_object(http)
    given = data.get("tokens")
    if isinstance(given, list) and len(given) > MAX_TOKENS:
        raise invalid(f"Field 'tokens': at most {MAX_TOKENS}, got {len(given)}")
    fields = convert(data, DetokenizeFields)
    tokenizer = service.engine.tokenizer
    return await service.read_text(len(fields.tokens), token_text, fields.tokens, tokenizer)


def token_text(ids: Sequence[int], tokenizer: Tokenizer) -> Response:
    n_bytes = 0
    for id in ids:
        n_bytes += len(tokenizer.piece(checked_token("tokens", id, tokenizer), special=True))
        if n_bytes > MAX_TEXT:
            raise invalid(f"Field 'tokens': their text is longer than {MAX_TEXT} bytes")
    text = tokenizer.decode(ids, special=True)
    return json_response({"content": text, "prompt": text})  # llama-server's name, and vLLM's


async def tokenizer_info(service: Service, http: HttpRequest) -> Response:
    """vLLM's: what a client needs that has no tokenizer of its own (lm-eval)."""
    engine = service.engine
    tokenizer = engine.tokenizer
    eos = special_text(tokenizer.eos_id, tokenizer)
    return json_response(
        {
            "tokenizer_class": "GGUF",
            "bos_token": special_text(tokenizer.bos_id, tokenizer),
            "eos_token": eos,
            "pad_token": eos,
            "chat_template": engine.chat_template.source,
            "model_max_length": engine.n_ctx,
            "vocab_size": tokenizer.n_vocab,
        }
    )


async def apply_template(service: Service, http: HttpRequest) -> Response:
    """The prompt that a conversation becomes."""
    chat = read_chat(await service.read_object(http))
    chat = msgspec.structs.replace(chat, messages=with_markers(chat.messages, SHOWN_MARKER))
    form = await rendered(service, chat)
    return json_response({"prompt": form.prompt})


async def props(service: Service, http: HttpRequest) -> Response:
    """What the server is and how it generates."""
    engine = service.engine
    tokenizer = engine.tokenizer
    return json_response(
        {
            "default_generation_settings": {
                "params": {
                    **generation_settings(default_request(service.defaults), engine),
                    "stream": False,
                    "timings_per_token": False,
                },
                "n_ctx": engine.n_ctx,
            },
            "total_slots": engine.n_slots,
            "model_alias": service.model_name,
            "model_ftype": engine.info.file_type,
            "model_path": str(engine.info.path),
            "modalities": service.modalities,
            "speech": spoken(service),
            "media_marker": SHOWN_MARKER,
            "endpoint_slots": service.endpoints.slots,
            "endpoint_props": service.endpoints.props,
            "endpoint_metrics": service.endpoints.metrics,
            "chat_template": engine.chat_template.source,
            "chat_template_caps": await template_caps(service),
            "bos_token": special_text(tokenizer.bos_id, tokenizer),
            "eos_token": special_text(tokenizer.eos_id, tokenizer),
            "build_info": BUILD_INFO,
            "is_sleeping": service.is_sleeping,
        }
    )


def spoken(service: Service) -> dict[str, Any] | None:
    """How the model speaks, for those who ask for /v1/audio/speech; None: it does not."""
    speech = service.engine.speech
    if speech is None:
        return None
    return {
        "sample_rate": speech.rate, "languages": speech.languages, "voices": voice_names(service),
    }  # fmt: skip


def default_request(defaults: Defaults) -> Request:
    return Request(
        (),
        defaults.sampling,
        max_tokens=defaults.max_tokens,
        stop=defaults.stop,
        n_keep=defaults.n_keep,
    )


async def change_props(service: Service, http: HttpRequest) -> Response:
    """llama-server has the endpoint, and no property that can be changed yet."""
    if not service.endpoints.props:
        raise not_enabled("POST /props", "--props")
    await service.read_object(http)
    return json_response({"success": True})


def special_text(id: int | None, tokenizer: Tokenizer) -> str:
    if id is None or id < 0:
        return ""
    return tokenizer.piece(id, special=True).decode("utf-8", "replace")
