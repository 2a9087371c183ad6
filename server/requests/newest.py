"""A conversation that is longer than the context, without its oldest turns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain, takewhile
from typing import Any

import msgspec

from gguf_serve.engine.errors import ContextOverflowError
from gguf_serve.server.requests.chat import prepare
from gguf_serve.server.requests.conversation import Chat
from gguf_serve.server.requests.fields import max_tokens
from gguf_serve.server.requests.generate import Job
from gguf_serve.server.requests.service import Service

SYSTEM = ("system", "developer")
ANSWER_SHARE = 1 / 8  # of the context, what is left for an answer of any length
Messages = Sequence[dict[str, Any]]


async def prepare_newest(service: Service, chat: Chat, n_ctx: int = 0) -> Job:
    """Prepare a chat, without as many of its oldest turns as it takes to fit it into the context,
    or into ``n_ctx`` tokens of it.
    The system prompt and the last turn stay; ContextOverflowError where they do not fit alone."""
    head, turns = split_turns(chat.messages)
    job: Job | None = None  # without ``most`` turns
    least, most, n = 0, len(turns) - 1, 0  # how many turns must go, and how many are tried next
    while least < most:
        found = await fitting(service, with_messages(chat, head, turns[n:]), n_ctx)
        if found is None:
            least = n + 1
        else:
            job, most = found, n
        n = (least + most) // 2
    return job or await prepare(service, with_messages(chat, head, turns[most:]))


async def fitting(service: Service, chat: Chat, n_ctx: int = 0) -> Job | None:
    """What a chat means, if that leaves room for an answer."""
    try:
        job = await prepare(service, chat)
    except ContextOverflowError:
        return None
    n_ctx = n_ctx or service.engine.n_ctx
    wanted = max_tokens(chat, service.defaults.max_tokens)
    room = int(n_ctx * ANSWER_SHARE)
    room = room if wanted < 0 else min(wanted, room)
    return job if len(job.prompts[0].ids) + room <= n_ctx else None


def split_turns(messages: Messages) -> tuple[Messages, Sequence[Messages]]:
    """The system prompt, and the turns: what a user says with all that follows on it."""
    head = list(takewhile(lambda message: message["role"] in SYSTEM, messages))
    turns: list[list[dict[str, Any]]] = []
    for message in messages[len(head) :]:
        if message["role"] == "user" or not turns:
            turns.append([])
        turns[-1].append(message)
    return head, turns or [[]]


def with_messages(chat: Chat, head: Messages, turns: Iterable[Messages]) -> Chat:
    return msgspec.structs.replace(chat, messages=[*head, *chain.from_iterable(turns)])
