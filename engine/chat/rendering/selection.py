"""Which chat template a model has: the file's, the user's, or one of builtin.py's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

from gguf_serve.engine.chat.builtin import DEFAULT, builtin_names, builtin_template
from gguf_serve.engine.errors import ModelError


class TemplateSources(NamedTuple):
    """The templates of a model; ``tool_use`` is for requests with tools, if there is one."""

    default: str
    tool_use: str | None


def select_template(metadata: Mapping[str, object]) -> TemplateSources:
    """The templates in a GGUF file's metadata, ChatML where it has none.

    ModelError if the value is not a string.
    """
    found = {name: metadata.get(f"tokenizer.chat_template{name}") for name in ("", ".tool_use")}
    for name, source in found.items():
        if source is not None and not isinstance(source, str):
            kind = type(source).__name__
            raise ModelError(f"tokenizer.chat_template{name}: expected a string, got {kind}")
    default, tool_use = (source if isinstance(source, str) else None for source in found.values())
    return TemplateSources(default or named_template(DEFAULT), tool_use or None)


def named_template(name_or_source: str) -> str:
    """The template of ``--chat-template``: a built-in name, or a text, with Jinja in it or without.
    ModelError for one word that is no such name: it is more likely a slip than a prompt."""
    source = builtin_template(name_or_source)
    if source is not None:
        return source
    if "{" in name_or_source or len(name_or_source.split()) > 1:
        return name_or_source
    raise ModelError(
        f"unknown chat template {name_or_source!r}; known are {', '.join(builtin_names())}"
    )
