"""From a request that has been read to the engine: what every generating endpoint shares."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from msgspec import Struct
from msgspec.structs import replace
from starlette.types import ASGIApp

from gguf_serve.engine.chat.format import ChatFormat, ChatParser
from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.request import DraftLimits, Generation, ReasoningBudget, Request, Scoring
from gguf_serve.engine.sampling_params import SamplingParams, TokenRules
from gguf_serve.server.adapters import named
from gguf_serve.server.errors import ApiError, invalid
from gguf_serve.server.http.client import conversation
from gguf_serve.server.http.reply import MAX_SCORES, Reply, Translator
from gguf_serve.server.http.stream import EventStream
from gguf_serve.server.interface import Tokenizer
from gguf_serve.server.requests.answer import Choice
from gguf_serve.server.requests.constraints import compiled, read_constraint
from gguf_serve.server.requests.fields import (
    GenerationFields,
    adapter_scales,
    max_tokens,
    n_choices,
    sampling_params,
    stop_strings,
    token_rules,
)
from gguf_serve.server.requests.prompts import Prompt
from gguf_serve.server.requests.service import asked_model

if TYPE_CHECKING:
    from gguf_serve.server.requests.service import Service


class Options(Struct, frozen=True):
    """What the client wants to see beside the text."""

    n: int = 1  # choices of each prompt
    n_top: int | None = None  # not None: log-probabilities, with so many likeliest tokens
    post_sampling: bool = False
    stream: bool = False
    return_tokens: bool = False
    timings_per_token: bool = False
    include_usage: bool = False
    prompt_logprobs: int | None = None  # the same of the prompts' tokens
    n_scored: int | None = (
        None  # likeliest tokens that are found for them; None: for an answer only
    )
    return_token_ids: bool = False


class Job(Struct, frozen=True):
    """Prompts, and how what is generated for them is read."""

    prompts: Sequence[Prompt]
    constraint: Constraint | None = None
    format: ChatFormat | None = None  # None: the text is the answer
    stop: tuple[str, ...] = ()  # beside the client's
    shown: frozenset[int] = frozenset()  # special tokens that are text here
    reasoning: ReasoningBudget | None = None

    def choices(self, n: int = 1) -> list[Choice]:
        """n for each prompt, in the order of their engine requests."""
        return [Choice(prompt, self._parser()) for prompt in self.prompts for _ in range(n)]

    def _parser(self) -> ChatParser | None:
        if self.format is None:
            return None
        parser = self.format.parser()
        parser.push("")  # a message that is continued comes first: the client has it
        return parser


async def plain_job(service: Service, fields: GenerationFields, prompts: Sequence[Prompt]) -> Job:
    """Of prompts that no template has written; ApiError for what cannot be enforced."""
    asked = read_constraint(fields, service.defaults.constraint, service.engine.tokenizer)
    return Job(prompts, await compiled(service.engine, asked))


def make_options(
    fields: GenerationFields, n_top: int | None, service: Service, n_echoed: int | None = None
) -> Options:
    """``n_echoed``: how many likeliest tokens an echo of the prompt shows; None: none is scored."""
    if fields.prompt_logprobs is not None and fields.stream:
        raise invalid("Field 'prompt_logprobs': is not there in a stream")
    asked = [n for n in (n_echoed, fields.prompt_logprobs) if n is not None]
    stream_options = fields.stream_options
    return Options(
        n=n_choices(fields, service.engine.n_slots),
        n_top=n_top,
        post_sampling=bool(fields.post_sampling_probs),
        stream=bool(fields.stream),
        return_tokens=bool(fields.return_tokens),
        timings_per_token=bool(fields.timings_per_token),
        include_usage=bool(stream_options and stream_options.include_usage),
        prompt_logprobs=fields.prompt_logprobs,
        n_scored=max(asked, default=None),
        return_token_ids=bool(fields.return_token_ids),
    )


async def start(
    service: Service,
    fields: GenerationFields,
    job: Job,
    options: Options,
    dialect: Translator,
    stream: EventStream | None = None,
) -> ASGIApp:
    """Submit a request for every choice; refusals of the engine are raised here."""
    requests = await engine_requests(service, fields, job, options)
    return await submit(service, fields, requests, dialect, stream)


async def submit(
    service: Service,
    fields: GenerationFields,
    requests: Sequence[Request],
    dialect: Translator,
    stream: EventStream | None = None,
) -> ASGIApp:
    asked = fields.sse_ping_interval
    stream = service.event_stream() if stream is None else stream
    await stream.submit(requests)
    interval = service.ping_interval if asked is None else asked
    if fields.stream and (name := conversation.get()):
        kept = await service.kept_streams.begin(name, stream, dialect, interval)
        if kept is not None:
            return kept
    return Reply(stream, dialect, bool(fields.stream), service.timeout, interval)


async def engine_requests(
    service: Service, fields: GenerationFields, job: Job, options: Options
) -> list[Request]:
    """n for each prompt, in the order of the choices; a given seed counts up over the n."""
    check_writes(service)
    defaults = service.defaults
    given = fields, defaults.sampling, service.engine.tokenizer
    if fields.logit_bias or fields.bad_words:  # may have texts, which are tokenized
        sampling, rules = await asyncio.to_thread(choosing, *given)
    else:
        sampling, rules = choosing(*given)
    n_scored = options.n_scored
    request = Request(
        prompt=(),
        sampling=sampling,
        max_tokens=max_tokens(fields, defaults.max_tokens),
        stop=stop_strings(fields, defaults.stop) + job.stop,
        includes_stop=bool(fields.include_stop_str_in_output),
        rules=rules,
        n_probs=0 if options.n_top is None else max(options.n_top, 1),
        post_sampling_probs=options.post_sampling,
        wants=Generation() if n_scored is None else Scoring(n_scored),
        cache_prompt=defaults.cache_prompt if fields.cache_prompt is None else fields.cache_prompt,
        cache_salt=fields.cache_salt or "",
        constraint=job.constraint,
        special=defaults.special
        if fields.skip_special_tokens is None
        else not fields.skip_special_tokens,
        shown=job.shown,
        reasoning=job.reasoning,
        progress=bool(fields.stream and fields.return_progress),
        max_ms=fields.t_max_predict_ms or 0,
        min_indent=fields.n_indent or 0,
        n_keep=defaults.n_keep if fields.n_keep is None else fields.n_keep,
        n_discard=fields.n_discard or 0,
        adapters=adapters(fields, service),
        id_slot=-1 if fields.id_slot is None else fields.id_slot,
        priority=fields.priority or 0,
        prediction=await expected(fields, service.engine.tokenizer),
        drafts=draft_limits(fields),
    )
    seeds = [s if (s := sampling.seed) < 0 else s + k for k in range(options.n)]
    check_scores(job.prompts, n_scored, options.n)
    return [
        replace(
            request,
            prompt=prompt.ids,
            media=prompt.media,
            sampling=dataclasses.replace(sampling, seed=seed),
        )
        for prompt in job.prompts
        for seed in seeds
    ]


def check_generates(service: Service) -> None:
    """ApiError where there are vectors and scores alone."""
    if service.only_vectors:
        message = "This server gives vectors and scores: start it without --embedding and --rerank"
        raise ApiError("not_supported_error", message)


def check_writes(service: Service) -> None:
    """ApiError where no text is generated."""
    check_generates(service)
    if service.engine.speech is not None:
        message = f"The model {service.model_name} speaks and writes no text: use /v1/audio/speech"
        raise ApiError("not_supported_error", message)


def adapters(fields: GenerationFields, service: Service) -> tuple[tuple[int, float], ...] | None:
    """``lora``'s, else the one that ``model`` names: alone, and whole. None: what all have."""
    if fields.lora is not None:
        return adapter_scales(fields.lora)
    model = asked_model.get()
    if model == service.model_name or model in service.aliases:
        return None
    found = named(model, service.engine)
    return None if found is None else ((found.id, 1.0),)


def choosing(
    fields: GenerationFields, default: SamplingParams, tokenizer: Tokenizer
) -> tuple[SamplingParams, TokenRules]:
    """What says how tokens are chosen."""
    return sampling_params(fields, default, tokenizer), token_rules(fields, tokenizer)


async def expected(fields: GenerationFields, tokenizer: Tokenizer) -> tuple[int, ...]:
    """The tokens of a ``prediction``."""
    if fields.prediction is None:
        return ()
    text = fields.prediction.text
    encode = partial(tokenizer.encode, text, add_special=False, parse_special=True)
    return tuple(await asyncio.to_thread(encode))


def draft_limits(fields: GenerationFields) -> DraftLimits:
    most, least = fields.speculative_n_max, fields.speculative_n_min
    return DraftLimits(
        -1 if most is None else max(most, -1), max(least or 0, 0), fields.speculative_p_min or 0.0
    )


def check_scores(prompts: Sequence[Prompt], n_top: int | None, n: int) -> None:
    """ApiError if an answer would have too many scores of its prompts; ``n_top`` None: none."""
    if n_top is None:
        return
    n_scores = n * (1 + n_top) * sum(len(prompt.ids) for prompt in prompts)
    if n_scores > MAX_SCORES:
        raise invalid(
            f"Field 'logprobs': {n_scores} log-probabilities of the prompts (one, and {n_top} of "
            f"likeliest tokens, for each token of each choice), at most {MAX_SCORES} in an answer"
        )
