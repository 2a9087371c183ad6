"""The Jinja environment for chat templates: a model file's template is not trusted.

What a template can rely on is what Hugging Face transformers gives it
(``transformers/utils/chat_template_utils.py``) plus the points in which llama.cpp's Jinja
is more lenient, since templates are written against both. What it cannot do is reach
Python, run without end or fill the memory: loop steps, calls, and the size of what it
builds are counted. Knows nothing of messages.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import datetime
from functools import wraps
from typing import Any, NoReturn

from jinja2 import Undefined, nodes
from jinja2.exceptions import TemplateError
from jinja2.ext import Extension, LoopControlExtension
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import SandboxedEnvironment

MAX_STEPS = 10_000_000  # of one rendering, about two seconds: an iteration is 1 step, ...
CALL_STEPS = 20  # ... a call this many, since a macro costs that much more
MAX_CHARS = 1 << 26  # length of any one string, and of all text written by one rendering
MAX_EXPONENT_BITS = 4096
_WIDE_FORMAT = re.compile(r"\d{7}|\*")  # a field width that only an attack asks for
_PADDING_FILTERS = ("do_center", "do_indent", "do_batch", "do_slice")


class RunawayTemplateError(TemplateError):
    """The template loops too long or builds too much text."""


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
    """Sandboxed Jinja with the names and the limits of a chat template.

    Not the immutable one: Kimi-K2 appends to lists and pops from them. Whoever renders
    passes copies.
    """

    intercepted_binops = frozenset({"+", "*", "**", "%"})

    def __init__(self, now: Callable[[], datetime]) -> None:
        super().__init__(
            trim_blocks=True,
            lstrip_blocks=True,
            undefined=LenientUndefined,
            extensions=[LoopControlExtension, GenerationExtension],
            finalize=self._write,
        )
        self._spent = threading.local()
        self.binop_table.update({"*": _times, "**": _power, "%": _modulo})
        self.filters |= {name: _narrow(function) for name, function in self.filters.items()}
        # Prompts are not HTML: nothing is ever marked as markup, else a later "+" would escape.
        self.filters |= {"tojson": tojson, "safe": str, "escape": _escape, "e": _escape}
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda format: now().strftime(format)

    def begin(self) -> None:
        """Start counting anew; call before each rendering, on the rendering thread."""
        self._spent.steps = 0
        self._spent.chars = 0

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Parse, then put every loop and every ``~`` under the limits."""
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = _call_of_environment("counted", [loop.iter])
        for operand in list(tree.find_all(nodes.Concat)):
            parts = operand.nodes
            operand.nodes = [_call_of_environment("joined", parts)]
        return tree

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items of a loop; raises RunawayTemplateError when steps run out."""
        for item in items:
            self._step()
            yield item

    def joined(self, *parts: Any) -> str:
        """``a ~ b``."""
        return "".join(map(str, parts))

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._step(CALL_STEPS)
        # The sandbox wraps str.format; the text that it formats is behind __wrapped__.
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if isinstance(owner, str):
            _check_widths(args, kwargs)
            if getattr(obj, "__name__", "").startswith("format") and _WIDE_FORMAT.search(owner):
                raise RunawayTemplateError(f"chat template: too wide a format: {owner!r:.80}")
        return _sized(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return _sized(super().call_binop(context, operator, left, right))

    def _step(self, cost: int = 1) -> None:
        self._spent.steps += cost
        if self._spent.steps > MAX_STEPS:
            raise RunawayTemplateError(f"chat template: more than {MAX_STEPS} steps")

    def _write(self, value: Any) -> Any:
        """Jinja's ``finalize``: every ``{{ value }}`` passes here."""
        if isinstance(value, str) and hasattr(self._spent, "chars"):
            self._spent.chars += len(value)
            if self._spent.chars > MAX_CHARS:
                raise RunawayTemplateError(f"chat template: more than {MAX_CHARS} characters")
        return value


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


def _escape(value: Any) -> str:
    # Ampersand first: the others bring ampersands of their own.
    text = str(value).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return text.replace("'", "&#39;").replace('"', "&#34;")


def _raise_exception(message: object) -> NoReturn:
    raise TemplateError(str(message))


def _call_of_environment(method: str, args: Sequence[nodes.Node]) -> nodes.Call:
    lineno = args[0].lineno
    function = nodes.EnvironmentAttribute(method, lineno=lineno)
    return nodes.Call(function, list(args), [], None, None, lineno=lineno)


def _narrow(function: Callable[..., Any]) -> Callable[..., Any]:
    """A filter that refuses widths no prompt needs (``|center(10**9)``) and results too long."""
    name = function.__name__

    @wraps(function)
    def narrow(*args: Any, **kwargs: Any) -> Any:
        if name in _PADDING_FILTERS:
            _check_widths(args[1:], kwargs)
        if name == "do_format" and _WIDE_FORMAT.search(str(args[0])):
            raise RunawayTemplateError(f"chat template: too wide a format: {args[0]!r:.80}")
        return _sized(function(*args, **kwargs))

    return narrow


def _check_widths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and value > MAX_CHARS:
            raise RunawayTemplateError(f"chat template: {value} is too large an argument")


def _sized(value: Any) -> Any:
    if isinstance(value, str | list) and len(value) > MAX_CHARS:
        raise RunawayTemplateError(f"chat template: a value of {len(value)} elements")
    return value


def _times(left: Any, right: Any) -> Any:
    for count, value in ((left, right), (right, left)):
        is_sequence = isinstance(value, str | list | tuple)
        if is_sequence and isinstance(count, int) and count * len(value) > MAX_CHARS:
            raise RunawayTemplateError(f"chat template: a value of {count * len(value)} elements")
    return left * right


def _power(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        bits = left.bit_length() * right
        if bits > MAX_EXPONENT_BITS:
            raise RunawayTemplateError(f"chat template: a number of {bits} bits")
    return left**right


def _modulo(left: Any, right: Any) -> Any:
    if isinstance(left, str) and _WIDE_FORMAT.search(left):
        raise RunawayTemplateError(f"chat template: too wide a format: {left!r:.80}")
    return left % right
