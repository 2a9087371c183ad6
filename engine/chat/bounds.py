"""How much one operation of a template would build, reckoned before it is done.

Python does it in one go, holding the interpreter's lock: nobody could stop it any more.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from jinja2 import Environment
from jinja2.exceptions import TemplateError
from jinja2.nodes import EvalContext
from jinja2.runtime import Context

MAX_CHARS = 1 << 26  # length of any one string, and of all text written by one rendering
MAX_PARTS = 1 << 20  # of a list, and of all that is within a value
MAX_INDENT = 64
MAX_BITS = 1 << 16  # of a number
_NUMBER = 8  # characters of what is no text, about


class RunawayTemplateError(TemplateError):
    """The template loops too long or builds too much text."""


def weight(value: Any) -> int:
    """About how many characters a value is as text. RunawayTemplateError if it has too many parts:
    lists of a list of a list, all of them the same, have no end."""
    n_chars = n_parts = 0
    left = [value]
    while left:
        part = left.pop()
        n_parts += 1
        if isinstance(part, str):
            n_chars += len(part)
        elif isinstance(part, dict):
            left += [*part.keys(), *part.values()]
        elif isinstance(part, list | tuple):
            if n_parts + len(left) + len(part) > MAX_PARTS:
                raise RunawayTemplateError("chat template: a value of too many parts")
            left += part
        else:
            n_chars += _NUMBER
        if n_parts > MAX_PARTS:
            raise RunawayTemplateError("chat template: a value of too many parts")
    return n_chars


def check_length(n: int) -> None:
    if n > MAX_CHARS:
        raise RunawayTemplateError(f"chat template: a value of {n} elements")


def check_product(left: int, right: int) -> None:
    bits = left.bit_length() + right.bit_length()
    if bits > MAX_BITS:
        raise RunawayTemplateError(f"chat template: a number of {bits} bits")


def check_fields(text: str, values: Any, mark: str) -> None:
    """A format, each of whose fields may show all of the values."""
    check_length(len(text) + text.count(mark) * weight(values))


def check_method(text: str, name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """A string's method before it is called."""
    if name == "replace" and len(args) > 1 and isinstance(args[0], str):
        check_length(len(text) + text.count(args[0]) * len(str(args[1])))
    elif name == "join" and args and isinstance(args[0], list | tuple | dict):
        check_length(weight(args[0]) + len(text) * len(args[0]))
    elif name == "expandtabs":
        width = next((x for x in (*args, *kwargs.values()) if isinstance(x, int)), 8)
        check_length(len(text) + text.count("\t") * width)
    elif name.startswith("format"):
        check_fields(text, [*args, *kwargs.values()], "{")


def check_filter(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    """A filter before it is called, with what Jinja gives it beside the template's arguments."""
    if name in _TAKES_ANY:
        return
    own = (Environment, EvalContext, Context)
    value, *rest = (x for x in args if not isinstance(x, own))
    n_chars = weight(value)
    more = [*rest, *kwargs.values()]
    if name in _BUILT:
        check_length(n_chars + _BUILT[name](value, more))


def _joined(value: Any, more: list[Any]) -> int:
    n = len(value) if isinstance(value, str | list | tuple | dict) else 0
    return n * _longest(more)


def _replaced(value: Any, more: list[Any]) -> int:
    return str(value).count(str(more[0])) * _longest(more[1:]) if more else 0


def _formatted(value: Any, more: list[Any]) -> int:
    return str(value).count("%") * weight(more)


def _indented(value: Any, more: list[Any]) -> int:
    widths = [len(x) if isinstance(x, str) else x for x in more if isinstance(x, str | int)]
    return (str(value).count("\n") + 1) * max(widths, default=4)


def _wrapped(value: Any, more: list[Any]) -> int:
    return len(str(value)) * _longest(more)


def _as_json(value: Any, more: list[Any]) -> int:
    for indent in more:
        if isinstance(indent, int) and indent > MAX_INDENT:
            raise RunawayTemplateError(f"chat template: {indent} is too large an argument")
    return 0


def _longest(values: Iterable[Any]) -> int:
    return max((len(x) for x in values if isinstance(x, str)), default=1)


_BUILT: dict[str, Callable[[Any, list[Any]], int]] = {
    "join": _joined, "replace": _replaced, "format": _formatted, "indent": _indented,
    "wordwrap": _wrapped, "tojson": _as_json,
}  # fmt: skip
# These look at no more than the parts of a list, and many times in the loops of a template.
_TAKES_ANY = frozenset({
    "length", "count", "first", "last", "list", "map", "select", "reject", "selectattr",
    "rejectattr", "default", "d", "items", "reverse", "batch", "slice", "attr",
})  # fmt: skip
