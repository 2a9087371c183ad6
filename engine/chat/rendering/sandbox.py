"""The Jinja environment for chat templates: a model file's template is not trusted.

What a template can rely on is what Hugging Face transformers gives it
(``transformers/utils/chat_template_utils.py``) plus the points in which llama.cpp's Jinja
is more lenient, since templates are written against both. What it cannot do is reach
Python. It can run without end and fill the memory: the server renders in a process that may
do neither (confined.py). Knows nothing of messages.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any, NoReturn

from jinja2 import Undefined, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.sandbox import SandboxedEnvironment


class GenerationExtension(Extension):
    """``{% generation %}``: marks the assistant's text for training, renders as its body."""

    tags = {"generation"}  # noqa: RUF012  (jinja2's own declaration is a plain set)

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


class LenientUndefined(Undefined):
    """An absent value that adds nothing to a string, as llama.cpp has it."""

    def __add__(self, other: Any) -> Any:
        return other if isinstance(other, str | Undefined) else self._fail_with_undefined_error()

    __radd__ = __add__


class ChatEnvironment(SandboxedEnvironment):
    """Sandboxed Jinja with the names of a chat template.

    Not the immutable one: Kimi-K2 appends to lists and pops from them. Whoever renders
    passes copies.
    """

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=LenientUndefined,
            extensions=[LoopControlExtension, GenerationExtension],
        )
        # Prompts are not HTML: nothing is ever marked as markup, else a later "+" would escape.
        self.filters |= {"tojson": tojson, "safe": _text, "escape": _escape, "e": _escape}
        del self.globals["lipsum"]  # text for trying out a page, as much as is asked for
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda format: now().strftime(format)


def tojson(
    value: Any,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as transformers' templates get it: no HTML escapes, keys in their order."""
    return json.dumps(
        value,
        ensure_ascii=ensure_ascii,
        indent=indent,
        separators=separators,
        sort_keys=sort_keys,
        default=_listed,
    )


def _listed(value: Any) -> list[Any]:
    """A generator (``x|map(...)``) as a list; TypeError for what JSON cannot hold."""
    if isinstance(value, Undefined) or not isinstance(value, Iterable):
        raise TypeError(f"tojson: {type(value).__name__} is not JSON")
    return list(value)


def _text(value: Any) -> str:
    return str(value)


def _escape(value: Any) -> str:
    # Ampersand first: the others bring ampersands of their own.
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("'", "&#39;").replace('"', "&#34;")


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))
