from __future__ import annotations

from html.parser import HTMLParser

import pytest

from gguf_serve.server.page.markdown import to_html


@pytest.mark.parametrize(
    ("text", "html"),
    [
        ("**a** `b`", "<p><strong>a</strong> <code>b</code></p>"),
        ("$x^2$", "<math display"),
        (r"\(x_1\)", "<msub>"),
        ("\\[ \\frac{a}{b} \\]", '<div class="formula"><math display="block">'),
        ("$$\na\n$$", '<div class="formula"><math display="block">'),
        ("costs $5 and $6", "costs $5 and $6"),
        ("| a |\n|--:|\n| 1 |", '<td class="text-align-right">1</td>'),
        ("~~no~~", "<s>no</s>"),
        ("- [x] done", 'type="checkbox"'),
        ("```python\nif x: pass\n```", '<span class="k">if</span>'),
        ("```klingon\n<b>\n```", "&lt;b&gt;"),
        ("see https://example.org", 'href="https://example.org" target="_blank" rel="noopener'),
    ],
)
def test_what_models_write(text: str, html: str) -> None:
    assert html in to_html(text)


@pytest.mark.parametrize(
    "text",
    [
        "<script>alert(1)</script>",
        "<img src=x onerror=alert(1)>",
        "[a](javascript:alert(1))",
        "![a](javascript:alert(1))",
        '[a](https://x.org "onclick=alert(1)")',
        "[a](data:text/html,<script>alert(1)</script>)",
        "<svg/onload=alert(1)>",
        '```" onmouseover="alert(1)\nx\n```',
        r"$\text{<script>alert(1)</script>}$",
        r"$\href{javascript:alert(1)}{x}$",
        "| <iframe src=x> |\n|---|\n| <style>*{}</style> |",
        "<math><mtext><table><mglyph><style><!--</style><img src onerror=alert(1)>",
        "&lt;script&gt;",
        "<https://x.org/<script>>",
    ],
)
def test_nothing_in_a_text_acts(text: str) -> None:
    look = Look()
    look.feed(to_html(text))
    assert look.found == []


class Look(HTMLParser):
    """Finds elements and attributes that act or load something."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[object] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "img", "iframe", "style", "svg", "object", "form", "mglyph"):
            self.found.append(tag)
        for name, value in attrs:
            scheme = (value or "").partition(":")[0].lower()
            if name.startswith("on") or name == "style" or scheme in ("javascript", "data"):
                self.found.append((tag, name, value))


def test_the_look_finds_what_acts() -> None:
    look = Look()
    look.feed('<img src=x onerror=a><a href="javascript:b">')
    assert len(look.found) == 3


def test_an_image_is_a_link_since_loading_it_would_tell_its_server() -> None:
    html = to_html("![a cat](https://example.org/cat?q=secret)")
    assert "<img" not in html
    assert "a cat</a>" in html
