"""What a chat request means with the served model: prompt, grammar, limits, and its parser."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
from msgspec.structs import replace

from gguf_serve.engine.chat.format import ChatFormat, chat_format
from gguf_serve.engine.chat.layout import Thinking
from gguf_serve.engine.errors import ContextOverflowError, RequestError
from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.request import ReasoningBudget
from gguf_serve.server.errors import invalid
from gguf_serve.server.interface import Engine, Tokenizer
from gguf_serve.server.options.request_defaults import Defaults
from gguf_serve.server.requests.constraints import compiled, read_constraint
from gguf_serve.server.requests.conversation import Chat, continued_field, tool_choice
from gguf_serve.server.requests.fields import max_tokens, n_kept
from gguf_serve.server.requests.generate import Job
from gguf_serve.server.requests.media import MARKER, SHOWN_MARKER, read_media, with_markers
from gguf_serve.server.requests.prompts import MAX_TOKENS, Prompt, last_tokens, within_context
from gguf_serve.server.requests.service import Service
from gguf_serve.server.requests.workers import Workers

RENDERERS = Workers(4, "template", each=2)  # of 3 children (confined.py)
MAX_MESSAGE = 2**12  # characters that end a reasoning


async def prepare(
    service: Service, chat: Chat, media: Sequence[Any] | None = None, counts: bool = False
) -> Job:
    """Render and tokenize, in a thread: a long conversation takes milliseconds.

    ``media``: what has been decoded, if the markers are in the messages already. ``counts``: only
    the number of tokens is wanted, which may be more than the context holds.
    """
    if media is None:
        media = await read_media(chat.messages, service.engine, service.fetcher)
        chat = msgspec.structs.replace(chat, messages=with_markers(chat.messages))
    default, tokenizer = service.defaults.constraint, service.engine.tokenizer
    asked = await asyncio.to_thread(read_constraint, chat, default, tokenizer)
    form = await rendered(service, chat, asked)
    job = await service.read_text(
        len(form.prompt),
        read_job,
        chat,
        form,
        asked,
        service.engine,
        service.defaults,
        media,
        counts,
    )
    await compiled(service.engine, job.constraint)
    return job


async def rendered(service: Service, chat: Chat, asked: Constraint | None = None) -> ChatFormat:
    """In a thread of those that wait for templates, which may keep them for seconds."""
    return await RENDERERS.run(render, chat, service.engine, service.defaults, asked)


async def template_caps(service: Service) -> dict[str, bool]:
    """What the model's template supports: nothing if it does not end."""

    def find() -> dict[str, bool]:
        try:
            return service.engine.chat_template.caps.as_props()
        except RequestError:
            return {}

    return await RENDERERS.run(find)


def read_job(
    chat: Chat,
    form: ChatFormat,
    asked: Constraint | None,
    engine: Engine,
    defaults: Defaults,
    media: Sequence[Any] = (),
    counts: bool = False,
) -> Job:
    """``media``: the images and sounds whose markers are in the messages."""
    tokenizer = engine.tokenizer
    parsed = not defaults.skip_chat_parsing
    last = n_kept(chat.truncate_prompt_tokens, max_tokens(chat, defaults.max_tokens), engine.n_ctx)
    whole = prompt(form.prompt, engine, media, MAX_TOKENS if counts or last else 0)
    return Job(
        [whole if last is None else last_tokens(whole, last)],
        constraint=constraint(chat, form, asked),
        format=form if parsed else None,
        stop=form.stops,
        shown=frozenset(special_tokens(form, tokenizer)) if parsed else frozenset(),
        reasoning=reasoning_budget(chat, form, tokenizer, defaults),
    )


def render(
    chat: Chat, engine: Engine, defaults: Defaults, asked: Constraint | None = None
) -> ChatFormat:
    continues = continued_field(chat, defaults.prefill_assistant)
    mode, tools = tool_choice(chat)
    template = engine.chat_template
    parallel = chat.parallel_tool_calls
    if parallel is None:
        parallel = template.caps.supports_parallel_tool_calls
    return chat_format(
        template,
        chat.messages,
        tools=tools if tools and mode != "none" else None,
        tool_choice=mode,
        parallel_tool_calls=parallel,
        reasoning_format=chat.reasoning_format or defaults.reasoning_format,
        template_kwargs=template_variables(chat, defaults),
        add_generation_prompt=chat.add_generation_prompt is not False and not continues,
        continue_final_message=continues,
        json_schema=schema_object(asked),
        reads_unmarked=defaults.unmarked_tool_calls and asked is None,
    )


def schema_object(asked: Constraint | None) -> dict[str, Any] | None:
    """Some templates write the schema into the prompt."""
    if asked is None or asked.kind != "json_schema":
        return None
    schema = msgspec.json.decode(asked.text)
    return schema if isinstance(schema, dict) else None


def template_variables(chat: Chat, defaults: Defaults) -> dict[str, Any]:
    extra: dict[str, Any] = dict(defaults.template_kwargs)
    if defaults.thinks is not None:
        extra.setdefault("enable_thinking", defaults.thinks)
    effort = chat.reasoning_effort or defaults.reasoning_effort
    if effort == "none":
        extra["enable_thinking"] = False
    elif effort is not None:
        extra["reasoning_effort"] = effort
    if chat.parallel_tool_calls is not None:
        extra["parallel_tool_calls"] = chat.parallel_tool_calls
    return extra | (chat.chat_template_kwargs or {})


def prompt(text: str, engine: Engine, media: Sequence[Any], most: int = 0) -> Prompt:
    """ContextOverflowError, without reading to its end, for a text of more tokens than the
    context holds and than ``most``."""
    most = max(most, engine.n_ctx)
    if not media or engine.media is None:
        with within_context(most):
            return Prompt(prompt_ids(text, engine.tokenizer, most), text)
    try:
        with within_context(most):
            found = engine.media.prompt(text, MARKER, media, engine.tokenizer, most)
    except ContextOverflowError:
        raise
    except RequestError as error:
        raise invalid(str(error)) from None
    return Prompt(found.ids, text.replace(MARKER, SHOWN_MARKER), found.spans)


def prompt_ids(text: str, tokenizer: Tokenizer, most: int) -> tuple[int, ...]:
    # One more: what the template has written twice is not counted.
    ids = tokenizer.encode(text, add_special=True, parse_special=True, most=most + 1)
    if len(ids) > 1 and ids[0] == ids[1] == tokenizer.bos_id:
        del ids[0]  # the template has written one too
    return tuple(ids)


def special_tokens(form: ChatFormat, tokenizer: Tokenizer) -> list[int]:
    """The tokens that the parser needs as text; others of their kind stay hidden."""
    found = []
    for text in form.preserved_tokens:
        ids = tokenizer.encode(text, add_special=False, parse_special=True)
        found += ids if len(ids) == 1 else []
    return found


def constraint(chat: Chat, form: ChatFormat, asked: Constraint | None) -> Constraint | None:
    """The syntax of calls, or what the client wants of the answer after its reasoning."""
    mode, tools = tool_choice(chat)
    if asked is not None and tools and mode != "none" and asked.kind != "json_schema":
        raise invalid("Cannot use custom grammar constraints with tools.")
    if form.grammar is not None:
        return form.grammar
    if asked is not None and tools and mode != "none":
        raise invalid("Field 'response_format': cannot go with tools for this model's template")
    if asked is None or form.thinking is None or asked.triggers:
        return asked
    tags = form.thinking.start, form.thinking.ends[0]
    return replace(asked, reasoning=tags, prefix=form.generation_prompt)


def reasoning_budget(
    chat: Chat, form: ChatFormat, tokenizer: Tokenizer, defaults: Defaults
) -> ReasoningBudget | None:
    given = (chat.reasoning_budget_tokens, chat.thinking_budget_tokens, defaults.reasoning_budget)
    n_tokens = next(value for value in given if value is not None)
    thinking = form.thinking
    if thinking is None or (n_tokens < 0 and not chat.reasoning_control):
        return None
    message = chat.reasoning_budget_message
    message = defaults.reasoning_budget_message if message is None else message
    if len(message) > MAX_MESSAGE:
        raise invalid(
            f"Field 'reasoning_budget_message': at most {MAX_MESSAGE} characters, "
            f"got {len(message)}"
        )
    forced = tokenizer.encode(message + thinking.ends[0], add_special=False, parse_special=True)
    opened = is_open(form.generation_prompt, thinking)
    return ReasoningBudget(thinking.start, thinking.ends, tuple(forced), n_tokens, opened)


def is_open(generation_prompt: str, thinking: Thinking) -> bool:
    """Whether the prompt ends inside of reasoning."""
    last_end = max(generation_prompt.rfind(end) for end in thinking.ends)
    return generation_prompt.rfind(thinking.start) > last_end
