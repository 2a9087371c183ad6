"""Fill-in-the-middle prompts: what stands before and after, around the model's own tokens.

The order is llama-server's (prefix, suffix, middle, or suffix, prefix, middle); so are the texts
around further files.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import msgspec
from starlette.requests import Request as HttpRequest

from gguf_serve.server.errors import ApiError
from gguf_serve.server.http.client import LONGEST_SESSION, client, is_awaited
from gguf_serve.server.http.stream import EventStream
from gguf_serve.server.interface import FimTokens, Tokenizer
from gguf_serve.server.requests.prompts import Prompt, within_context
from gguf_serve.server.requests.service import Service


class ExtraFile(msgspec.Struct):
    text: str
    filename: str = "tmp"


def infill_prompt(
    tokenizer: Tokenizer,
    prefix: str,
    suffix: str,
    extra: Sequence[ExtraFile] = (),
    prompt: str = "",
    *,
    n_ctx: int,
    suffix_first: bool = False,
) -> Prompt:
    """The prompt whose answer stands between; `prompt` is what has been typed there already.

    ``suffix_first``: some models have been trained on that order. ApiError 501 if the vocabulary
    has no tokens for this.
    """
    fim = tokenizer.fim
    if fim.prefix is None or fim.suffix is None or fim.middle is None:
        raise ApiError("not_supported_error", "Infill is not supported by this model")

    left = n_ctx

    def encode(text: str) -> list[int]:
        nonlocal left
        ids = tokenizer.encode(text, add_special=False, parse_special=False, most=max(left, 0))
        left -= len(ids)
        return ids

    with within_context(n_ctx):
        bos = tokenizer.encode("", add_special=True, parse_special=False)[:1]
        ids = [*bos, *extra_files(tokenizer.fim, encode, extra)]
        before = [fim.prefix, *encode(prefix), *encode(prompt)]
        after = [fim.suffix, *encode(suffix)]
    ids += after + before if suffix_first else before + after
    return Prompt((*ids, fim.middle))


def suffixed(prefix: str, suffix: str, service: Service) -> Prompt:
    """The prompt of other APIs for the text between two, as the command line wants it."""
    engine, spm = service.engine, service.defaults.spm_infill
    return infill_prompt(engine.tokenizer, prefix, suffix, n_ctx=engine.n_ctx, suffix_first=spm)


def newest_stream(service: Service, http: HttpRequest, user: object = "") -> EventStream:
    """The stream for what stands between two texts, in the place of what the same editor has asked
    for before: whoever goes on typing does not want that any more.

    An editor is a client (a key or an address, which many may share) with a name: that of the
    header ``x-session-id``, else ``user`` of the body. Those without one replace nothing.
    """
    stream = service.event_stream()
    named = http.headers.get("x-session-id") or (user if isinstance(user, str) else "")
    if named and is_awaited.get():
        editor = (client.get(), named[:LONGEST_SESSION])
        older = service.infills.get(editor)
        if older is not None:
            older.refuse("a newer request of the same session has taken its place")
        service.infills[editor] = stream
    return stream


def extra_files(
    fim: FimTokens, encode: Callable[[str], list[int]], extra: Sequence[ExtraFile]
) -> list[int]:
    """Other files of the project, each behind a separator and its name if there is a token."""
    ids: list[int] = []

    def add(text: str) -> None:
        ids.extend(encode(text))

    if extra and fim.repo is not None:
        ids.append(fim.repo)
        add("myproject\n")
    for file in extra:
        if fim.separator is not None:
            ids.append(fim.separator)
            add(f"{file.filename}\n")
        else:
            add("\n\n--- snippet ---\n\n")
        add(file.text)
    if extra and fim.separator is not None:
        ids.append(fim.separator)
        add("filename\n")
    return ids
