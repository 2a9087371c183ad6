"""From the prompt of a request, in any of its shapes, to token ids."""

from __future__ import annotations

from collections.abc import Iterator, Sized
from contextlib import contextmanager
from typing import Any

from msgspec import Struct

from gguf_serve.engine.errors import ContextOverflowError, TooManyTokensError
from gguf_serve.engine.media.span import MediaSpan
from gguf_serve.server.errors import invalid, shown
from gguf_serve.server.interface import Tokenizer

MAX_PROMPTS = 2048  # of one request, as in OpenAI's API: each is a request to the engine
MAX_TOKENS = 2**20  # of a text that is only tokenized
MAX_PROMPT_TOKENS = 2**22  # of all prompts of a request


class Prompt(Struct, frozen=True):
    ids: tuple[int, ...]
    text: str | None = None  # as it was given, None if it was given as tokens
    media: tuple[MediaSpan, ...] = ()  # where the ids are negative


def prompt_text(prompt: Prompt, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(prompt.ids, special=True) if prompt.text is None else prompt.text


@contextmanager
def within_context(n_ctx: int) -> Iterator[None]:
    """A text that is not tokenized to its end, since it has too many tokens, is told as one that
    does not fit the context."""
    try:
        yield
    except TooManyTokensError as error:
        raise ContextOverflowError(error.n_tokens, n_ctx, at_least=True) from None


def completion_prompts(
    value: Any, tokenizer: Tokenizer, n_ctx: int, field: str = "prompt", cut: bool = False
) -> list[Prompt]:
    """A string, tokens, strings mixed with tokens, what has been read already, or a list of these;
    `field` has it. ``cut``: the first tokens of what does not fit the context."""
    several = isinstance(value, list) and is_list_of_prompts(value)
    if several:
        check_number(value, field)
    prompts: list[Prompt] = []
    n_tokens = 0
    for item in value if several else [value]:
        prompts.append(one_prompt(item, tokenizer, n_ctx, field, cut))
        n_tokens += len(prompts[-1].ids)
        check_total(n_tokens, n_ctx, field)
    if not prompts:
        raise invalid(f"Field '{field}': the list is empty")
    return prompts


def last_tokens(prompt: Prompt, n: int) -> Prompt:
    """The last n tokens of a prompt, as vLLM's ``truncate_prompt_tokens`` keeps them."""
    if len(prompt.ids) <= n:
        return prompt
    if prompt.media:
        raise invalid("Field 'truncate_prompt_tokens': cannot go with images and sounds")
    return Prompt(prompt.ids[-n:])


def check_total(n_tokens: int, n_ctx: int, field: str) -> None:
    """ApiError if the prompts of a request have too many tokens together."""
    most = max(MAX_PROMPT_TOKENS, n_ctx)
    if n_tokens > most:
        raise invalid(f"Field '{field}': more than {most} tokens together")


def check_number(prompts: Sized, field: str) -> None:
    if len(prompts) > MAX_PROMPTS:
        raise invalid(f"Field '{field}': at most {MAX_PROMPTS} at a time, got {len(prompts)}")


def is_list_of_prompts(value: list[Any]) -> bool:
    return all(isinstance(item, str) for item in value) or any(
        isinstance(item, list | Prompt) for item in value
    )


def one_prompt(
    value: Any, tokenizer: Tokenizer, n_ctx: int, field: str, cut: bool = False
) -> Prompt:
    if isinstance(value, Prompt):
        return value
    if cut and isinstance(value, str):
        ids = tuple(tokenizer.first(value, n_ctx))
    else:
        with within_context(n_ctx):
            ids = tuple(encode_mixed(field, value, tokenizer, add_special=True, most=n_ctx))
    if not ids:
        raise invalid(f"Field '{field}': there are no tokens")
    return Prompt(ids, value if isinstance(value, str) else None)


def encode_mixed(
    field: str,
    value: Any,
    tokenizer: Tokenizer,
    add_special: bool,
    parse_special: bool = True,
    *,
    most: int,
) -> list[int]:
    """Tokens of a string or of a list of strings and tokens; only a leading string gets BOS.

    TooManyTokensError where the rest of more than ``most`` is not encoded.
    """
    if isinstance(value, str):
        return tokenizer.encode(
            value, add_special=add_special, parse_special=parse_special, most=most
        )
    if not isinstance(value, list):
        raise invalid(f"Field '{field}': expected a string or an array, got {shown(value)}")
    if len(value) > most and not any(isinstance(part, str) for part in value):
        raise TooManyTokensError(len(value), most)
    ids: list[int] = []
    for place, part in enumerate(value):
        if isinstance(part, str):
            if len(ids) > most:
                raise TooManyTokensError(len(ids), most)
            with_special = add_special and place == 0
            ids += tokenizer.encode(
                part, add_special=with_special, parse_special=parse_special, most=most - len(ids)
            )
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
