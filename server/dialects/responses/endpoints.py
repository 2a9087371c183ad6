"""OpenAI's Responses API: items to a Chat, with what earlier responses and conversations had."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

from starlette.requests import Request as HttpRequest
from starlette.responses import Response
from starlette.routing import BaseRoute
from starlette.types import ASGIApp

from gguf_serve.server.dialects.dialect import Post
from gguf_serve.server.dialects.responses import conversations, stored
from gguf_serve.server.dialects.responses.background import Background
from gguf_serve.server.dialects.responses.files import ResponseFiles
from gguf_serve.server.dialects.responses.input import (
    ALSO,
    ELSEWHERE,
    STATEFUL,
    ResponsesFields,
    chat_body,
    messages,
)
from gguf_serve.server.dialects.responses.memory import Items, Kept, Memory, with_ids
from gguf_serve.server.dialects.responses.searching import searches
from gguf_serve.server.dialects.responses.translator import Responses
from gguf_serve.server.dialects.rounds import Rounds, let_go_on
from gguf_serve.server.errors import invalid, json_response, shown
from gguf_serve.server.requests.chat import prepare
from gguf_serve.server.requests.conversation import Chat, read_chat
from gguf_serve.server.requests.fields import convert, refuse
from gguf_serve.server.requests.generate import Job, engine_requests, make_options, submit
from gguf_serve.server.requests.newest import prepare_newest
from gguf_serve.server.requests.service import Service


def routes(service: Service) -> list[BaseRoute]:
    folder = service.response_folder
    memory = Memory(service.response_memory, None if folder is None else ResponseFiles(folder))
    answer, count = partial(responses, service, memory), partial(input_tokens, service, memory)
    return [
        *(
            Post(f"{start}{path}", endpoint, ResponsesFields, also=ALSO)
            for path, endpoint in (("/responses", answer), ("/responses/input_tokens", count))
            for start in ("/v1", "")
        ),
        *stored.routes(service, memory),
        *conversations.routes(service, memory),
    ]


class Asked(NamedTuple):
    """A request with all that goes before it."""

    data: dict[str, Any]  # its fields; the items of earlier turns are in front of its own
    items: Items
    conversation: Kept | None  # that the answer goes on


async def responses(service: Service, memory: Memory, http: HttpRequest) -> ASGIApp:
    """Go on with a conversation whose earlier turns may be kept here."""
    asked = with_history(memory, await service.read_object(http))
    data = asked.data
    chat, job = await read(service, data)
    options = make_options(chat, chat.top_logprobs if chat.logprobs else None, service)
    keeps = partial(remember, memory, asked)
    rounds = Rounds(job.choices()[0], await searches(data, service.tools))
    dialect = Responses(rounds, service.model_name, data, options, keeps)
    requests = await engine_requests(service, chat, job, options)
    stream = service.event_stream()
    let_go_on(rounds, service, chat, options, stream)
    if not data.get("background"):
        return await submit(service, chat, requests, dialect, stream)
    memory.check_room_for_run()
    await stream.submit(requests)
    kept = Kept(dialect.id, asked.items)
    kept.run = Background(service, stream, dialect, on_end=lambda: stored.ended(memory, kept))
    kept.response = kept.run.response
    memory.keep(kept)
    return stored.followed(service, kept.run) if chat.stream else json_response(kept.response)


def remember(memory: Memory, asked: Asked, response: dict[str, Any]) -> None:
    """Keep a response that is complete, and what it adds to its conversation."""
    if asked.data["store"] and not asked.data.get("background"):  # which is kept from its start on
        memory.keep(Kept(response["id"], asked.items, response))
    if asked.conversation is not None:
        asked.conversation.items = (*asked.items, *response["output"])
        memory.keep(asked.conversation)


async def input_tokens(service: Service, memory: Memory, http: HttpRequest) -> Response:
    """Count the tokens of a conversation with all that goes before it."""
    asked = with_history(memory, await service.read_object(http))
    _, job = await read(service, asked.data, counts=True)
    return json_response(
        {"object": "response.input_tokens", "input_tokens": len(job.prompts[0].ids)}
    )


def with_history(memory: Memory, data: dict[str, Any]) -> Asked:
    refuse(data, ELSEWHERE if memory.most else ELSEWHERE | STATEFUL)
    fields = convert(data, ResponsesFields)
    previous, conversation = fields.previous_response_id, fields.conversation
    if previous is not None and conversation is not None:
        raise invalid("Field 'conversation': cannot go with 'previous_response_id'")
    if fields.background and fields.store is False:
        raise invalid("Field 'background': needs 'store', for its answer is asked for later")
    given = fields.input if isinstance(fields.input, str) else referred(memory, fields.input)
    items = with_ids(given)
    data = data | {"input": given, "store": bool(memory.most) and fields.store is not False}
    if previous is not None:
        kept = memory.find("previous_response_id", previous)
        if kept.is_running:
            raise invalid(f"Field 'previous_response_id': {previous} has not ended yet")
        before, going_on = kept.history, None
    elif conversation is not None:
        id = conversation.get("id") if isinstance(conversation, dict) else conversation
        going_on = memory.find("conversation", id, is_response=False)
        before, data["conversation"] = going_on.items, {"id": id}
    else:
        return Asked(data, items, None)
    messages(data)  # what is wrong with its own items is named by their places among these
    items = (*before, *items)
    return Asked(data | {"input": list(items)}, items, going_on)


def referred(memory: Memory, items: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The items with those that they refer to (``item_reference``) in their places."""
    found = []
    for place, item in enumerate(items):
        if item.get("type") == "item_reference":
            named = item.get("id")
            there = memory.item(named) if isinstance(named, str) else None
            if there is None:
                what = f"item_reference: there is no item {shown(named)} here (any more)"
                raise invalid(f"Field 'input[{place}]': {what}")
            item = dict(there)
        found.append(item)
    return found


async def read(service: Service, data: dict[str, Any], counts: bool = False) -> tuple[Chat, Job]:
    chat = read_chat(chat_body(data, searches=service.tools.searches_web))
    if data.get("truncation") == "auto" and not counts:
        return chat, await prepare_newest(service, chat)
    return chat, await prepare(service, chat, counts=counts)
