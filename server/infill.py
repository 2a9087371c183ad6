"""Fill-in-the-middle prompts: what stands before and after, around the model's own tokens.

The order is llama-server's (prefix, suffix, middle, or suffix, prefix, middle); so are the texts
around further files.
"""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from server.errors import ApiError
from server.interface import Tokenizer
from server.prompts import Prompt


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
    suffix_first: bool = False,
) -> Prompt:
    """The prompt whose answer stands between; `prompt` is what has been typed there already.

    ``suffix_first``: some models have been trained on that order. ApiError 501 if the vocabulary
    has no tokens for this.
    """
    fim = tokenizer.fim
    if fim.prefix is None or fim.suffix is None or fim.middle is None:
        raise ApiError("not_supported_error", "Infill is not supported by this model")

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special=False, parse_special=False)

    bos = tokenizer.encode("", add_special=True, parse_special=False)[:1]
    ids = [*bos, *extra_files(tokenizer, extra)]
    before = [fim.prefix, *encode(prefix), *encode(prompt)]
    after = [fim.suffix, *encode(suffix)]
    ids += after + before if suffix_first else before + after
    return Prompt((*ids, fim.middle))


def extra_files(tokenizer: Tokenizer, extra: Sequence[ExtraFile]) -> list[int]:
    """Other files of the project, each behind a separator and its name if there is a token."""
    fim = tokenizer.fim
    ids: list[int] = []

    def add(text: str) -> None:
        ids.extend(tokenizer.encode(text, add_special=False, parse_special=False))

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
