"""Prompts that are objects: a text with the images and sounds that its markers stand for, or parts
as a message of a chat has them. llama-server takes both beside strings and tokens."""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import Iterable
from typing import Any

from gguf_serve.server.errors import invalid, shown
from gguf_serve.server.requests.chat import prompt
from gguf_serve.server.requests.conversation import check_part, with_refusals
from gguf_serve.server.requests.media import MARKER, SHOWN_MARKER, read_media, with_markers
from gguf_serve.server.requests.prompts import (
    MAX_PROMPTS,
    MAX_TOKENS,
    Prompt,
    check_number,
    completion_prompts,
    last_tokens,
)
from gguf_serve.server.requests.service import Service

N_LETTERS = 16  # of base64: the first 12 bytes, by which a sound is known


async def read_prompts(
    value: Any,
    service: Service,
    field: str = "prompt",
    cut: bool = False,
    last: int | None = None,
) -> list[Prompt]:
    """Any number of prompts in any of their shapes; ApiError says what is wrong in `field`.

    ``cut``: of texts that do not fit the context, the beginnings that do; ``last``: so many tokens
    of their ends.
    """
    most = 0 if last is None else MAX_TOKENS
    # As many numbers as a body may have take the loop's time only to be looked at.
    long = isinstance(value, list) and len(value) > MAX_PROMPTS
    has_objects, n = await asyncio.to_thread(measured, value) if long else measured(value)
    if isinstance(value, dict):
        value = await object_prompt(value, service, field, most)
    elif has_objects:
        check_number(value, field)
        value = [
            await object_prompt(item, service, f"{field}[{place}]", most)
            if isinstance(item, dict)
            else item
            for place, item in enumerate(value)
        ]
    engine = service.engine
    prompts = await service.read_text(
        n, completion_prompts, value, engine.tokenizer, max(engine.n_ctx, most), field, cut
    )
    return prompts if last is None else [last_tokens(prompt, last) for prompt in prompts]


def measured(value: Any) -> tuple[bool, int]:
    """Whether a list of prompts has objects, and how many characters a prompt or a list has."""
    items = value if isinstance(value, list) else [value]
    has_objects = items is value and any(isinstance(item, dict) for item in items)
    return has_objects, n_characters(items)


def n_characters(items: Iterable[Any]) -> int:
    """Of the texts among prompts; tokens take no time and do not count."""
    n = 0
    for item in items:
        if isinstance(item, str):
            n += len(item)
        elif isinstance(item, list):
            n += sum(len(part) for part in item if isinstance(part, str))
    return n


async def object_prompt(
    value: dict[str, Any], service: Service, name: str, most: int = 0
) -> Prompt:
    if "prompt_string" in value:
        text, parts = marked_text(value, name)
    elif isinstance(value.get("content"), str):
        text, parts = value["content"], []
    else:
        text, parts = text_of_parts(value.get("content"), f"{name}.content")
    engine = service.engine
    media = await read_media([{"content": parts}], engine, service.fetcher)
    found = await service.read_text(len(text), prompt, text, engine, media, most)
    if not found.ids:
        raise invalid(f"Field '{name}': there are no tokens")
    return found


def marked_text(value: dict[str, Any], name: str) -> tuple[str, list[dict[str, Any]]]:
    """The text with this process's markers, and the parts that they stand for."""
    text, data = value["prompt_string"], value.get("multimodal_data") or []
    if not isinstance(text, str):
        raise invalid(f"Field '{name}.prompt_string': expected a string, got {shown(text)}")
    if not isinstance(data, list) or not all(isinstance(one, str) for one in data):
        raise invalid(f"Field '{name}.multimodal_data': expected an array of base64 strings")
    if not data:
        return text, []
    n_markers = text.count(SHOWN_MARKER)
    if n_markers != len(data):
        raise invalid(
            f"Field '{name}.prompt_string': expected {SHOWN_MARKER} for each of the {len(data)} "
            f"in multimodal_data, got {n_markers}"
        )
    fields = (f"{name}.multimodal_data[{place}]" for place in range(len(data)))
    parts = [media_part(field, one) for field, one in zip(fields, data, strict=True)]
    return text.replace(SHOWN_MARKER, MARKER), parts


def media_part(name: str, data: str) -> dict[str, Any]:
    """What stands there says itself whether it is an image or a sound."""
    if is_sound(data):
        return {"type": "input_audio", "input_audio": {"data": data}, "name": name}
    return {"type": "image_url", "image_url": {"url": f"data:;base64,{data}"}, "name": name}


def is_sound(data: str) -> bool:
    try:
        head = base64.b64decode(data[:N_LETTERS])
    except (ValueError, binascii.Error):
        return False
    is_wave = head[:4] == b"RIFF" and head[8:12] == b"WAVE"
    is_mp3 = head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")
    return is_wave or is_mp3 or head[:4] in (b"fLaC", b"OggS")


def text_of_parts(parts: Any, name: str) -> tuple[str, list[dict[str, Any]]]:
    """The text with a marker where a part is none, and those parts."""
    if not isinstance(parts, list):
        raise invalid(f"Field '{name}': expected a string or an array, got {shown(parts)}")
    for place, part in enumerate(parts):
        check_part(f"{name}[{place}]", part)
    named = [part | {"name": f"{name}[{place}]"} for place, part in enumerate(parts)]
    (marked,) = with_markers([with_refusals({"content": named})])
    return "".join(part["text"] for part in marked["content"]), named
