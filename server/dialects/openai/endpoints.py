"""OpenAI's endpoints: chat completions, completions, models."""

from __future__ import annotations

from functools import partial
from typing import Literal

import msgspec
from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute, Route
from starlette.types import ASGIApp

from gguf_serve.engine.options import AdapterState
from gguf_serve.engine.request import Request
from gguf_serve.server.adapters import with_name
from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.dialects.openai.chunks import Completions, Shape
from gguf_serve.server.dialects.openai.shapes import ChatShape, TextShape
from gguf_serve.server.errors import invalid, json_response
from gguf_serve.server.requests.chat import prepare
from gguf_serve.server.requests.conversation import CHAT_ALSO, Chat, read_chat
from gguf_serve.server.requests.fields import (
    INERT,
    UNSUPPORTED,
    CompletionFields,
    GenerationFields,
    convert,
    max_tokens,
    n_kept,
    refuse,
)
from gguf_serve.server.requests.generate import (
    Job,
    Options,
    engine_requests,
    make_options,
    plain_job,
    submit,
)
from gguf_serve.server.requests.infill import newest_stream, suffixed
from gguf_serve.server.requests.native_answer import NativeAnswers
from gguf_serve.server.requests.prompt_objects import read_prompts
from gguf_serve.server.requests.prompts import Prompt
from gguf_serve.server.requests.service import Service, timestamp

CHAT_N_TOP = 20  # of "logprobs": true without top_logprobs


def routes(service: Service) -> list[BaseRoute]:
    chat, count = partial(chat_completions, service), partial(input_tokens, service)
    end = partial(control, service)
    return [
        *(Post(f"{start}/chat/completions", chat, Chat, also=CHAT_ALSO) for start in ("/v1", "")),
        *(
            Post(f"{start}/chat/completions/input_tokens", count, Chat, also=CHAT_ALSO)
            for start in ("/v1", "")
        ),
        *(Post(f"{start}/chat/completions/control", end, ControlFields) for start in ("/v1", "")),
        Post(
            "/v1/completions",
            partial(completions, service),
            CompletionFields,
            also=INERT.union(UNSUPPORTED),
        ),
        Route("/v1/models", partial(models, service)),
        Route("/models", partial(models, service)),
        Route("/v1/models/{name:path}", partial(model, service)),
    ]


async def chat_completions(service: Service, http: HttpRequest) -> ASGIApp:
    """Go on with a conversation, with tools, images and reasoning."""
    chat = read_chat(await service.read_object(http))
    options = make_options(chat, chat_n_top(chat), service)
    job = await prepare(service, chat)
    dialect, requests = await answering(service, chat, job, options, ChatShape(options))
    stream = service.event_stream()
    if chat.reasoning_control:
        service.controlled[dialect.id] = stream
    return await submit(service, chat, requests, dialect, stream)


async def answering(
    service: Service, fields: GenerationFields, job: Job, options: Options, shape: Shape
) -> tuple[Completions, list[Request]]:
    """The engine's requests, and what makes an answer of their events."""
    choices = job.choices(options.n)
    requests = await engine_requests(service, fields, job, options)
    is_verbose = service.verbose if fields.verbose is None else fields.verbose
    native = NativeAnswers(service, choices, requests, options) if is_verbose else None
    return Completions(shape, options, choices, service.model_name, native), requests


async def input_tokens(service: Service, http: HttpRequest) -> Response:
    """Count the tokens of a conversation, which is not answered."""
    job = await prepare(service, read_chat(await service.read_object(http)), counts=True)
    n_tokens = len(job.prompts[0].ids)
    return json_response({"object": "response.input_tokens", "input_tokens": n_tokens})


class ControlFields(msgspec.Struct):
    id: str
    action: Literal["reasoning_end"]


async def control(service: Service, http: HttpRequest) -> Response:
    """End the reasoning of a running completion that has asked for ``reasoning_control``."""
    fields = convert(await service.read_object(http), ControlFields)
    stream = service.controlled.get(fields.id)
    if stream is None or not stream.is_running:
        message = f"no completion {fields.id} with reasoning_control is running"
        return json_response({"success": False, "message": message})
    stream.end_reasoning()
    return json_response({"success": True, "message": "the reasoning is being ended"})


async def completions(service: Service, http: HttpRequest) -> ASGIApp:
    """Go on with a text."""
    data = await service.read_object(http)
    refuse(data, UNSUPPORTED)
    fields = convert(data, CompletionFields)
    n_top = fields.logprobs if fields.n_probs is None else fields.n_probs or None
    options = make_options(fields, n_top, service, n_echoed=n_top if fields.echo else None)
    job = await plain_job(service, fields, await prompts_of(fields, service))
    shape = TextShape(options, service.engine.tokenizer, echo=bool(fields.echo))
    dialect, requests = await answering(service, fields, job, options, shape)
    stream = newest_stream(service, http, data.get("user")) if fields.suffix else None
    return await submit(service, fields, requests, dialect, stream)


async def prompts_of(fields: CompletionFields, service: Service) -> list[Prompt]:
    """With a suffix, the text between it and the prompt is asked for."""
    if not fields.suffix:
        room = max_tokens(fields, service.defaults.max_tokens)
        last = n_kept(fields.truncate_prompt_tokens, room, service.engine.n_ctx)
        prompts = await read_prompts(fields.prompt, service, last=last)
        if fields.echo and any(prompt.media for prompt in prompts):
            raise invalid("Field 'echo': cannot go with images and sounds")
        return prompts
    if not isinstance(fields.prompt, str):
        raise invalid("Field 'suffix': needs a prompt that is one string")
    if fields.truncate_prompt_tokens is not None:
        raise invalid("Field 'truncate_prompt_tokens': cannot go with 'suffix'")
    n_characters = len(fields.prompt) + len(fields.suffix)
    return [await service.read_text(n_characters, suffixed, fields.prompt, fields.suffix, service)]


def chat_n_top(chat: Chat) -> int | None:
    """How many likeliest tokens to show; None: no log-probabilities at all."""
    if chat.top_logprobs is not None and not chat.logprobs:
        raise invalid("Field 'top_logprobs': requires logprobs to be true")
    if chat.logprobs and chat.tools and chat.stream:
        raise invalid("Field 'logprobs': is not supported with tools and stream")
    if chat.logprobs:
        return CHAT_N_TOP if chat.top_logprobs is None else chat.top_logprobs
    return chat.n_probs or None


async def models(service: Service, http: HttpRequest) -> Response:
    """The model, and its LoRA adapters, which requests may name as well."""
    adapters = service.engine.adapters()
    return json_response(
        {
            "models": [ollama_model(service)],
            "object": "list",
            "data": [openai_model(service), *map(partial(lora_model, service), adapters)],
            # Anthropic's list, which has the same path
            "has_more": False,
            "first_id": service.model_name,
            "last_id": adapters[-1].name if adapters else service.model_name,
        }
    )


async def model(service: Service, http: HttpRequest) -> Response:
    """An adapter by its name, else the one model, whatever it is called: completions do not look
    either."""
    asked = http.path_params["name"]
    found = with_name(asked, service.engine)
    return json_response(openai_model(service) if found is None else lora_model(service, found))


def lora_model(service: Service, adapter: AdapterState) -> dict[str, object]:
    """An adapter as vLLM lists it."""
    return {
        "id": adapter.name, "object": "model", "created": service.created,
        "owned_by": "llamacpp", "root": str(adapter.path), "parent": service.model_name,
        # Anthropic's
        "type": "model", "display_name": adapter.name, "created_at": timestamp(service.created),
    }  # fmt: skip


def openai_model(service: Service) -> dict[str, object]:
    info = service.engine.info
    return {
        "id": service.model_name,
        "aliases": service.aliases,
        "tags": service.tags,
        "object": "model",
        "type": "model",
        "display_name": info.name,
        "created": service.created,
        "created_at": timestamp(service.created),
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


def kind_of_answer(service: Service) -> str:
    """What the model makes of a prompt."""
    if service.engine.speech is not None:
        return "speech"
    return "embedding" if service.engine.info.is_encoder else "completion"


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
        "tags": service.tags,
        "capabilities": [
            kind_of_answer(service),
            *["multimodal"] * any(service.modalities.values()),
        ],
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
