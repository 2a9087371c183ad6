"""--warmup-prompt: what conversations begin with is computed before the first one comes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from concurrent.futures import Future
from itertools import takewhile
from typing import Any

from msgspec.structs import replace

from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.request import Event, Failed, Finished, Request
from gguf_serve.server.interface import Engine
from gguf_serve.server.requests.chat import prepare
from gguf_serve.server.requests.conversation import read_chat
from gguf_serve.server.requests.prompts import Prompt
from gguf_serve.server.requests.service import Service

log = logging.getLogger("gguf_serve.server")
QUESTIONS = "a", "b"  # of two users: what both prompts begin with, others do as well


def warm_up(service: Service, body: Mapping[str, Any]) -> int:
    """Compute what conversations that begin like this body of a chat completion have in common;
    how many tokens that are. ApiError or EngineError: it cannot be."""
    began = time.perf_counter()
    prompt = asyncio.run(beginning(service, body))
    n = len(prompt.ids)
    if n:
        compute(service.engine, prompt)
    log.info("--warmup-prompt has %d tokens, in %.1f s", n, time.perf_counter() - began)
    return n


async def beginning(service: Service, body: Mapping[str, Any]) -> Prompt:
    """What the prompt of a conversation begins with, whatever its user says."""
    first, second = [
        (await prepare(service, read_chat(with_question(body, said)))).prompts[0]
        for said in QUESTIONS
    ]
    pairs = zip(first.ids, second.ids, strict=False)
    n = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    n = min([n, *(span.start for span in first.media if span.start < n < span.end)])
    media = tuple(span for span in first.media if span.end <= n)
    return replace(first, ids=first.ids[:n], media=media)


def with_question(body: Mapping[str, Any], said: str) -> dict[str, Any]:
    return {**body, "messages": [*body["messages"], {"role": "user", "content": said}]}


def compute(engine: Engine, prompt: Prompt) -> None:
    """Bring a prompt into the cache; EngineError if that fails."""
    ended = Future[Finished]()

    def take(event: Event) -> None:
        if isinstance(event, Failed):
            ended.set_exception(EngineError(f"--warmup-prompt: {event.message}"))
        elif isinstance(event, Finished):
            ended.set_result(event)

    engine.submit(Request(prompt.ids, max_tokens=0, media=tuple(prompt.media)), take)
    ended.result()
