"""llama-server's own completions: /completion, /completions and /infill."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any

from starlette.requests import Request as HttpRequest
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from gguf_serve.engine.request import Event, Finished, Progress, Request
from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.errors import ApiError, plain_error
from gguf_serve.server.http.framing import SSE
from gguf_serve.server.http.stream import EventStream
from gguf_serve.server.requests.answer import Choice, Piece, join, prompt_progress, timings
from gguf_serve.server.requests.fields import (
    INERT,
    UNSUPPORTED,
    CompletionFields,
    GenerationFields,
    convert,
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
from gguf_serve.server.requests.infill import ExtraFile, infill_prompt, newest_stream
from gguf_serve.server.requests.native_answer import NativeAnswers
from gguf_serve.server.requests.prompt_objects import read_prompts
from gguf_serve.server.requests.prompts import Prompt
from gguf_serve.server.requests.service import Service

NATIVE_UNSUPPORTED = {k: v for k, v in UNSUPPORTED.items() if k != "response_fields"}
NATIVE_UNSUPPORTED |= {
    "echo": (False,),
    "prompt_logprobs": (),
    "return_token_ids": (False,),
    "suffix": ("",),
    "truncate_prompt_tokens": (),
}
NATIVE_ALSO = INERT.union(NATIVE_UNSUPPORTED)


class NativeFields(CompletionFields, kw_only=True):
    response_fields: list[str] | None = None


class InfillFields(GenerationFields, kw_only=True):
    input_prefix: str
    input_suffix: str
    input_extra: list[ExtraFile] | None = None
    prompt: str = ""
    response_fields: list[str] | None = None


def routes(service: Service) -> list[BaseRoute]:
    return [
        Post("/completion", partial(completion, service), NativeFields, also=NATIVE_ALSO),
        Post("/completions", partial(completion, service), NativeFields, also=NATIVE_ALSO),
        Post("/infill", partial(infill, service), InfillFields, also=NATIVE_ALSO),
    ]


async def completion(service: Service, http: HttpRequest) -> ASGIApp:
    """Go on with a prompt, with all of llama-server's fields."""
    fields = read(await service.read_object(http), NativeFields)
    if fields.n_probs is None:
        fields.n_probs = fields.logprobs  # its name in /v1/completions
    job = await plain_job(service, fields, await read_prompts(fields.prompt, service))
    return await answer(service, fields, job, fields.response_fields or [])


async def infill(service: Service, http: HttpRequest) -> ASGIApp:
    """Write what stands between two texts."""
    data = await service.read_object(http)
    fields = read(data, InfillFields)
    extra = fields.input_extra or []
    texts = [fields.input_prefix, fields.input_suffix, fields.prompt]
    texts += [file.text for file in extra]
    prompt = await service.read_text(sum(map(len, texts)), infill_for, service, fields, extra)
    job = await plain_job(service, fields, [prompt])
    stream = newest_stream(service, http, data.get("user"))
    return await answer(service, fields, job, fields.response_fields or [], stream)


def infill_for(service: Service, fields: InfillFields, extra: Sequence[ExtraFile]) -> Prompt:
    engine = service.engine
    return infill_prompt(
        engine.tokenizer, fields.input_prefix, fields.input_suffix, extra, fields.prompt,
        n_ctx=engine.n_ctx, suffix_first=service.defaults.spm_infill,
    )  # fmt: skip


def read(data: dict[str, Any], kind: Any) -> Any:
    refuse(data, NATIVE_UNSUPPORTED)
    return convert(data, kind)


async def answer(
    service: Service,
    fields: GenerationFields,
    job: Job,
    shown: Sequence[str],
    stream: EventStream | None = None,
) -> ASGIApp:
    options = make_options(fields, fields.n_probs or None, service)
    requests = await engine_requests(service, fields, job, options)
    dialect = NativeCompletions(service, job.choices(options.n), requests, options, shown)
    return await submit(service, fields, requests, dialect, stream)


class NativeCompletions:
    """The dialect: one object, or a list of them if there are several prompts or choices."""

    framing = SSE

    def __init__(
        self,
        service: Service,
        choices: Sequence[Choice],
        requests: Sequence[Request],
        options: Options,
        shown: Sequence[str],
    ) -> None:
        self.choices = choices
        self.options = options
        self.shown = shown
        self._answers = NativeAnswers(service, choices, requests, options)
        self._parts: list[list[Piece]] = [[] for _ in choices]  # of a whole answer
        self._has_new_line = [False] * len(choices)

    def chunks(self, index: int, event: Event) -> Iterable[object]:
        choice = self.choices[index]
        chunks = [self._partial(index, piece) for piece in choice.take(event) if piece.shows]
        if type(event) is Progress:
            progress = {"prompt_progress": prompt_progress(event)}
            chunks.append(self._partial(index, Piece()) | progress)
        if type(event) is Finished:
            chunks.append(self._final(index, Piece()))
        return chunks

    def last_chunks(self) -> Iterable[object]:
        return ()

    def failed(self, error: ApiError) -> Iterable[object]:
        return (plain_error(error),)

    def take(self, index: int, event: Event) -> None:
        pieces = self.choices[index].take(event)
        self._has_new_line[index] |= any("\n" in piece.text for piece in pieces)
        self._parts[index].extend(pieces)

    def whole(self) -> object:
        answers = [
            self._final(index, join(self._parts[index])) for index in range(len(self.choices))
        ]
        return answers[0] if len(answers) == 1 else answers

    def _partial(self, index: int, piece: Piece) -> dict[str, Any]:
        choice = self.choices[index]
        self._has_new_line[index] |= "\n" in piece.text
        chunk = {
            "index": index,
            "content": piece.text,
            "tokens": piece.tokens,
            "stop": False,
            "id_slot": choice.started.id_slot,
            "tokens_predicted": choice.timings.predicted_n,
            "tokens_evaluated": choice.started.n_prompt,
        }
        if self.options.timings_per_token:
            chunk["timings"] = timings([choice])
        return chunk | self._answers.probabilities(piece)

    def _final(self, index: int, piece: Piece) -> dict[str, Any]:
        whole = self._answers.whole(index, piece, self._has_new_line[index])
        return chosen(whole, self.shown) if self.shown else whole


def chosen(whole: Mapping[str, Any], paths: Sequence[str]) -> dict[str, Any]:
    """``response_fields``: the fields at the end of paths such as timings/predicted_n, by path."""
    found = {}
    for path in paths:
        value: Any = whole
        for name in path.split("/"):
            value = value.get(name) if isinstance(value, Mapping) else None
        if value is not None:
            found[path] = value
    return found
