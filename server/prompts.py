"""From the prompt of a request, in any of its shapes, to token ids."""

from __future__ import annotations

from collections.abc import Sized
from dataclasses import dataclass
from typing import Any

from engine.media.span import MediaSpan
from server.errors import invalid, shown
from server.interface import Tokenizer

MAX_PROMPTS = 2048  # of one request, as in OpenAI's API: each is a request to the engine


@dataclass(frozen=True, slots=True)
class Prompt:
    ids: tuple[int, ...]
    text: str | None = None  # as it was given, None if it was given as tokens
    media: tuple[MediaSpan, ...] = ()  # where the ids are negative


def prompt_text(prompt: Prompt, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(prompt.ids, special=True) if prompt.text is None else prompt.text


def completion_prompts(value: Any, tokenizer: Tokenizer, field: str = "prompt") -> list[Prompt]:
    """A string, tokens, strings mixed with tokens, what has been read already, or a list of these;
    `field` has it."""
    if isinstance(value, list) and is_list_of_prompts(value):
        check_number(value, field)
        prompts = [one_prompt(item, tokenizer, field) for item in value]
    else:
        prompts = [one_prompt(value, tokenizer, field)]
    if not prompts:
        raise invalid(f"Field '{field}': the list is empty")
    return prompts


def check_number(prompts: Sized, field: str) -> None:
    if len(prompts) > MAX_PROMPTS:
        raise invalid(f"Field '{field}': at most {MAX_PROMPTS} at a time, got {len(prompts)}")


def is_list_of_prompts(value: list[Any]) -> bool:
    return all(isinstance(item, str) for item in value) or any(
        isinstance(item, list | Prompt) for item in value
    )


def one_prompt(value: Any, tokenizer: Tokenizer, field: str) -> Prompt:
    if isinstance(value, Prompt):
        return value
    ids = tuple(encode_mixed(field, value, tokenizer, add_special=True))
    if not ids:
        raise invalid(f"Field '{field}': there are no tokens")
    return Prompt(ids, value if isinstance(value, str) else None)


def encode_mixed(
    field: str, value: Any, tokenizer: Tokenizer, add_special: bool, parse_special: bool = True
) -> list[int]:
    """Tokens of a string or of a list of strings and tokens; only a leading string gets BOS."""
    if isinstance(value, str):
        return tokenizer.encode(value, add_special=add_special, parse_special=parse_special)
    if not isinstance(value, list):
        raise invalid(f"Field '{field}': expected a string or an array, got {shown(value)}")
    ids: list[int] = []
    for place, part in enumerate(value):
        if isinstance(part, str):
            with_special = add_special and place == 0
            ids += tokenizer.encode(part, add_special=with_special, parse_special=parse_special)
        else:
            ids.append(checked_token(field, part, tokenizer))
    return ids


def checked_token(field: str, value: Any, tokenizer: Tokenizer) -> int:
    if type(value) is not int:
        raise invalid(f"Field '{field}': expected a string or a token id, got {shown(value)}")
    if not 0 <= value < tokenizer.n_vocab:
        last = tokenizer.n_vocab - 1
        raise invalid(f"Field '{field}': token {value} is outside the vocabulary (0 to {last})")
    return value
