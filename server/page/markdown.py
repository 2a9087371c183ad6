"""What a model writes, as HTML that a page may take in: Markdown, code and formulas.

The text may be anything that a model was talked into. HTML in it stays text, and what comes out
passes an allow-list (nh3), so that no element, attribute or address of the text's own acts.
"""

from __future__ import annotations

from collections.abc import MutableMapping, Sequence
from functools import cache
from typing import Any

import nh3
from latex2mathml.converter import convert
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.rules_core import StateCore
from markdown_it.token import Token
from mdit_py_plugins.dollarmath import dollarmath_plugin
from mdit_py_plugins.tasklists import tasklists_plugin
from mdit_py_plugins.texmath import texmath_plugin
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_by_name
from pygments.util import ClassNotFound

_MATHML = (
    "math menclose merror mfenced mfrac mi mmultiscripts mn mo mover mpadded mphantom mprescripts "
    "mroot mrow ms mspace msqrt mstyle msub msubsup msup mtable mtd mtext mtr munder munderover "
    "none semantics"
)
_HTML = (
    "a blockquote br code del div em h1 h2 h3 h4 h5 h6 hr input li ol p pre s span strong table "
    "tbody td th thead tr ul"
)
TAGS = {*_MATHML.split(), *_HTML.split()}
ATTRIBUTES = {
    "a": {"href", "title"},
    "code": {"class"},
    "div": {"class"},
    "input": {"type", "disabled", "checked", "class"},
    "li": {"class"},
    "math": {"display"},
    "mi": {"mathvariant"},
    "mo": {"stretchy", "fence", "form", "separator", "minsize", "maxsize", "movablelimits"},
    "mspace": {"width", "height", "depth", "linebreak"},
    "mtable": {"columnalign", "rowspacing", "columnspacing", "columnlines", "rowlines"},
    "mtd": {"columnalign"},
    "ol": {"start"},
    "pre": {"class"},
    "span": {"class"},
    "td": {"class"},
    "th": {"class"},
    "ul": {"class"},
}
SCHEMES = {"http", "https", "mailto"}


def to_html(text: str) -> str:
    """Safe HTML of Markdown: CommonMark with tables, strike-through, bare links, task lists,
    highlighted code (Pygments' short classes) and formulas between ``$``, ``$$``, ``\\(``, ``\\[``
    (MathML)."""
    return nh3.clean(
        _markdown().render(text),
        tags=TAGS,
        attributes=ATTRIBUTES,
        url_schemes=SCHEMES,
        link_rel="noopener noreferrer nofollow",
        set_tag_attribute_values={"a": {"target": "_blank"}},
    )


@cache
def _markdown() -> MarkdownIt:
    md = MarkdownIt("commonmark", {"html": False, "linkify": True, "highlight": _code})
    md.enable(["table", "strikethrough", "linkify"])
    md.use(dollarmath_plugin, allow_space=False, allow_digits=False, double_inline=True)
    md.use(texmath_plugin, delimiters="brackets")
    md.use(tasklists_plugin)
    for name in ("math_inline", "math_single"):
        md.add_render_rule(name, _formula)
    for name in ("math_inline_double", "math_block", "math_block_label", "math_block_eqno"):
        md.add_render_rule(name, _displayed)
    md.add_render_rule("image", _image)
    md.core.ruler.push("classes", _classes_for_styles)
    return md


def _code(text: str, language: str, _attributes: str) -> str:
    """The inside of a block of code; text as it is where the language is not known."""
    try:
        lexer = get_lexer_by_name(language or "text", stripnl=False)
    except ClassNotFound:
        return ""
    inside = highlight(text, lexer, HtmlFormatter(nowrap=True))
    return str(inside)


Environment = MutableMapping[str, Any]


def _formula(
    _: RendererHTML, tokens: Sequence[Token], i: int, options: Any, env: Environment
) -> str:
    return _math(tokens[i].content, "inline")


def _displayed(
    _: RendererHTML, tokens: Sequence[Token], i: int, options: Any, env: Environment
) -> str:
    return f'<div class="formula">{_math(tokens[i].content, "block")}</div>'


def _math(source: str, display: str) -> str:
    """MathML, or the source where it is not LaTeX that is known."""
    try:
        return convert(source.strip(), display=display)
    except Exception:  # whatever a parser says of something that it was not made for
        return f"<code>{nh3.clean_text(source)}</code>"


def _image(
    renderer: RendererHTML, tokens: Sequence[Token], i: int, options: Any, env: Environment
) -> str:
    """A link to it: to load an image would tell its server what was said here."""
    token = tokens[i]
    address = nh3.clean_text(str(token.attrs.get("src", "")))
    text = renderer.renderInlineAsText(token.children or [], options, env) or "image"
    return f'<a href="{address}">{nh3.clean_text(text)}</a>'


def _classes_for_styles(state: StateCore) -> None:
    """How a table's columns are aligned, without inline styles, which the page does not allow."""
    for token in state.tokens:
        if style := token.attrs.pop("style", None):
            token.attrSet("class", str(style).replace(":", "-"))
