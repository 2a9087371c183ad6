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
import time
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

from engine.chat.bounds import (
    MAX_CHARS,
    MAX_PARTS,
    RunawayTemplateError,
    check_fields,
    check_filter,
    check_length,
    check_method,
    check_product,
    weight,
)

MAX_STEPS = 10_000_000  # of one rendering, about two seconds: an iteration is 1 step, ...
CALL_STEPS = 20  # ... a call this many, since a macro costs that much more
CHARS_STEP, PARTS_STEP = 32, 8  # so many characters or parts that are built are a step, too
MAX_SECONDS = 15.0  # of the processor, whatever is counted as how many steps
STEPS_BETWEEN = 200  # looks at the clock
MAX_EXPONENT_BITS = 4096
_WIDE_FORMAT = re.compile(r"\d{7}|\*")  # a field width that only an attack asks for
_PADDING_FILTERS = ("center", "indent", "batch", "slice")


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
        # Prompts are not HTML: nothing is ever marked as markup, else a later "+" would escape.
        self.filters |= {"tojson": tojson, "safe": _text, "escape": _escape, "e": _escape}
        self.filters |= {name: self._narrow(name, f) for name, f in self.filters.items()}
        del self.globals["lipsum"]  # text for trying out a page, as much as is asked for
        self.globals["raise_exception"] = _raise_exception
        self.globals["strftime_now"] = lambda format: now().strftime(format)

    def begin(self) -> None:
        """Start counting anew; call before each rendering, on the rendering thread."""
        self._spent.steps = 0
        self._spent.chars = 0
        self._spent.next_look = 0
        self._spent.until = time.thread_time() + MAX_SECONDS

    def _parse(self, source: str, name: str | None, filename: str | None) -> nodes.Template:
        """Parse, then put every loop and every ``~`` under the limits."""
        tree = super()._parse(source, name, filename)
        for loop in list(tree.find_all(nodes.For)):
            loop.iter = _call_of_environment("counted", [loop.iter])
        for operand in list(tree.find_all(nodes.Concat)):
            parts = operand.nodes
            operand.nodes = [_call_of_environment("joined", parts)]
        for compared in list(tree.find_all(nodes.Compare)):
            sides: list[Any] = [compared, *compared.ops]
            if not any(isinstance(side.expr, nodes.Const) for side in sides):
                for side in sides:
                    side.expr = _call_of_environment("bounded", [side.expr])
        return tree

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        """No bytes, which are no text of a prompt, and no tables of replacements."""
        if isinstance(obj, str) and attr in ("encode", "translate"):
            return False
        return super().is_safe_attribute(obj, attr, value)

    def counted(self, items: Iterable[Any]) -> Iterator[Any]:
        """The items of a loop; raises RunawayTemplateError when steps run out."""
        for item in items:
            self._step()
            yield item

    def joined(self, *parts: Any) -> str:
        """``a ~ b``."""
        check_length(sum(map(weight, parts)))
        return "".join(map(str, parts))

    def bounded(self, value: Any) -> Any:
        """A value that is compared with another: equal lists are looked through."""
        if isinstance(value, list | tuple | dict):
            weight(value)
        return value

    def call(self, context: Context, obj: Any, /, *args: Any, **kwargs: Any) -> Any:
        self._step(CALL_STEPS)
        # The sandbox wraps str.format; the text that it formats is behind __wrapped__.
        owner = getattr(getattr(obj, "__wrapped__", obj), "__self__", None)
        if isinstance(owner, str):
            _check_widths(args, kwargs)
            if getattr(obj, "__name__", "").startswith("format") and _WIDE_FORMAT.search(owner):
                raise RunawayTemplateError(f"chat template: too wide a format: {owner!r:.80}")
            check_method(owner, getattr(obj, "__name__", ""), args, kwargs)
        return self._sized(super().call(context, obj, *args, **kwargs))

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        return self._sized(super().call_binop(context, operator, left, right))

    def _step(self, cost: int = 1) -> None:
        self._spent.steps += cost
        if self._spent.steps > MAX_STEPS:
            raise RunawayTemplateError(f"chat template: more than {MAX_STEPS} steps")
        if self._spent.steps >= self._spent.next_look:
            self._spent.next_look = self._spent.steps + STEPS_BETWEEN
            if time.thread_time() > self._spent.until:
                raise RunawayTemplateError(f"chat template: more than {MAX_SECONDS:g} seconds")

    def _sized(self, value: Any) -> Any:
        """What has been built, which counts by its size."""
        if isinstance(value, str):
            check_length(len(value))
            self._step(len(value) // CHARS_STEP)
        elif isinstance(value, list | tuple):
            if len(value) > MAX_PARTS:
                raise RunawayTemplateError(f"chat template: a value of {len(value)} elements")
            self._step(len(value) // PARTS_STEP)
        return value

    def _narrow(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """A filter that refuses widths no prompt needs (``|center(10**9)``) and results too
        long."""

        @wraps(function)
        def narrow(*args: Any, **kwargs: Any) -> Any:
            if name in _PADDING_FILTERS:
                _check_widths(args[1:], kwargs)
            if name == "format" and _WIDE_FORMAT.search(str(args[0])):
                raise RunawayTemplateError(f"chat template: too wide a format: {args[0]!r:.80}")
            check_filter(name, args, kwargs)
            return self._sized(function(*args, **kwargs))

        return narrow

    def _write(self, value: Any) -> Any:
        """Jinja's ``finalize``: every ``{{ value }}`` passes here."""
        if isinstance(value, list | tuple | dict):
            check_length(weight(value))
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


def _text(value: Any) -> str:
    return str(value)


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


def _check_widths(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    for value in (*args, *kwargs.values()):
        if isinstance(value, int) and value > MAX_CHARS:
            raise RunawayTemplateError(f"chat template: {value} is too large an argument")


def _times(left: Any, right: Any) -> Any:
    if isinstance(left, int) and isinstance(right, int):
        check_product(left, right)
    for count, value in ((left, right), (right, left)):
        if isinstance(value, str | list | tuple) and isinstance(count, int):
            check_length(
                count * len(value) * (1 if isinstance(value, str) else MAX_CHARS // MAX_PARTS)
            )
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
    if isinstance(left, str):
        check_fields(left, right, "%")
    return left % right
