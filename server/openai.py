"""OpenAI's endpoints: chat completions, completions, models."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from engine.request import Request
from server.chunks import Completions, Options, Shape
from server.errors import invalid, json_response
from server.fields import (
    ChatFields,
    CompletionFields,
    GenerationFields,
    TemplateFields,
    convert,
    max_tokens,
    n_choices,
    sampling_params,
    stop_strings,
)
from server.prompts import Prompt, chat_prompt, completion_prompts
from server.service import Service
from server.shapes import ChatShape, TextShape
from server.stream import Reply

CHAT_N_TOP = 20  # of "logprobs": true without top_logprobs


def routes(service: Service) -> list[BaseRoute]:
    chat = partial(chat_completions, service)
    return [
        Route("/v1/chat/completions", chat, methods=["POST"]),
        Route("/chat/completions", chat, methods=["POST"]),
        Route("/v1/completions", partial(completions, service), methods=["POST"]),
        Route("/v1/models", partial(models, service)),
        Route("/models", partial(models, service)),
        Route("/v1/models/{name:path}", partial(model, service)),
    ]


async def chat_completions(service: Service, http: HttpRequest) -> Reply:
    data = await service.read_object(http)
    fields, conversation = convert(data, ChatFields), convert(data, TemplateFields)
    options = make_options(fields, chat_n_top(fields, conversation), service)
    engine = service.engine
    # Rendering and tokenizing a long conversation takes milliseconds that others need.
    prompt = await asyncio.to_thread(
        chat_prompt, conversation, engine.chat_template, engine.tokenizer, service.defaults
    )
    return start(service, fields, [prompt], ChatShape(options), options)


async def completions(service: Service, http: HttpRequest) -> Reply:
    fields = convert(await service.read_object(http), CompletionFields)
    n_top = fields.logprobs if fields.n_probs is None else fields.n_probs or None
    if n_top is not None and n_top < 0:
        raise invalid(f"Field 'logprobs': Value must be 0 or more, got {n_top}")
    options = make_options(fields, n_top, service)
    engine = service.engine
    prompts = await asyncio.to_thread(completion_prompts, fields.prompt, engine.tokenizer)
    shape = TextShape(options, engine.tokenizer, echo=bool(fields.echo))
    return start(service, fields, prompts, shape, options)


def chat_n_top(fields: ChatFields, conversation: TemplateFields) -> int | None:
    """How many likeliest tokens to show; None: no log-probabilities at all."""
    if fields.top_logprobs is not None and not fields.logprobs:
        raise invalid("Field 'top_logprobs': requires logprobs to be true")
    if fields.logprobs and conversation.tools and fields.stream:
        raise invalid("Field 'logprobs': is not supported with tools and stream")
    if fields.logprobs:
        return CHAT_N_TOP if fields.top_logprobs is None else fields.top_logprobs
    return fields.n_probs or None


def make_options(fields: GenerationFields, n_top: int | None, service: Service) -> Options:
    stream_options = fields.stream_options
    return Options(
        n=n_choices(fields, service.engine.n_slots),
        n_top=n_top,
        post_sampling=bool(fields.post_sampling_probs),
        return_tokens=bool(fields.return_tokens),
        timings_per_token=bool(fields.timings_per_token),
        include_usage=bool(stream_options and stream_options.include_usage),
    )


def start(
    service: Service,
    fields: GenerationFields,
    prompts: Sequence[Prompt],
    shape: Shape,
    options: Options,
) -> Reply:
    """Submit a request for every choice; refusals of the engine are raised here."""
    interval = fields.sse_ping_interval
    stream = service.event_stream(
        (service.ping_interval if interval is None else interval) if fields.stream else 0.0
    )
    dialect = Completions(shape, options, prompts, service.model_name)
    stream.submit(engine_requests(service, fields, prompts, shape, options))
    return Reply(stream, dialect, bool(fields.stream))


def engine_requests(
    service: Service,
    fields: GenerationFields,
    prompts: Sequence[Prompt],
    shape: Shape,
    options: Options,
) -> list[Request]:
    """n for each prompt, in the order of the choices; a given seed counts up over the n."""
    defaults = service.defaults
    sampling = sampling_params(fields, defaults.sampling, service.engine.tokenizer)
    scores_prompt = isinstance(shape, TextShape) and shape.echo
    request = Request(
        prompt=(),
        sampling=sampling,
        max_tokens=max_tokens(fields, defaults.max_tokens),
        stop=stop_strings(fields, defaults.stop),
        n_probs=0 if options.n_top is None else max(options.n_top, 1),
        post_sampling_probs=options.post_sampling,
        prompt_logprobs=options.n_top if scores_prompt else None,
        cache_prompt=defaults.cache_prompt if fields.cache_prompt is None else fields.cache_prompt,
        special=defaults.special,
        id_slot=-1 if fields.id_slot is None else fields.id_slot,
    )
    seeds = [s if (s := sampling.seed) < 0 else s + k for k in range(options.n)]
    return [
        replace(request, prompt=prompt.ids, sampling=replace(sampling, seed=seed))
        for prompt in prompts
        for seed in seeds
    ]


async def models(service: Service, http: HttpRequest) -> Response:
    return json_response(
        {
            "models": [ollama_model(service)],
            "object": "list",
            "data": [openai_model(service)],
        }
    )


async def model(service: Service, http: HttpRequest) -> Response:
    """One server, one model: whatever it is called, as completions do not look either."""
    return json_response(openai_model(service))


def openai_model(service: Service) -> dict[str, object]:
    info = service.engine.info
    return {
        "id": service.model_name,
        "aliases": service.aliases,
        "tags": [],
        "object": "model",
        "created": service.created,
        "owned_by": "llamacpp",  # clients take it as the sign of this dialect
        "meta": {
            "vocab_type": info.vocab_type,
            "n_vocab": info.n_vocab,
            "n_ctx": service.engine.n_ctx,
            "n_ctx_train": info.n_ctx_train,
            "n_embd": info.n_embd,
            "n_params": info.n_params,
            "size": info.n_bytes,
            "ftype": info.file_type,
        },
    }


def ollama_model(service: Service) -> dict[str, object]:
    """The entry of Ollama's list that clients of both look for."""
    info = service.engine.info
    return {
        "name": service.model_name,
        "model": service.model_name,
        "modified_at": "",
        "size": "",
        "digest": "",
        "type": "model",
        "description": "",
        "tags": [],
        "capabilities": ["completion"],
        "parameters": "",
        "details": {
            "parent_model": "",
            "format": "gguf",
            "family": info.architecture,
            "families": [info.architecture],
            "parameter_size": info.size_label,
            "quantization_level": info.file_type,
        },
    }
