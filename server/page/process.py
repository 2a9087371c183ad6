"""What a child process of reading.py does: Markdown to HTML, and the text of a PDF."""

from __future__ import annotations

import io
from collections.abc import Callable

from gguf_serve.engine.child import serve
from gguf_serve.server.page.reading import Markdown, Pdf, Text, Unreadable, encode_answer

MAX_PAGES = 1000


def answer(asked: Markdown | Pdf) -> Text | Unreadable:
    # Imports only for what is asked: parsers are large.
    if isinstance(asked, Markdown):
        from gguf_serve.server.page.markdown import to_html

        return Text(to_html(asked.text))
    return text_of_pdf(asked.content)


def text_of_pdf(content: bytes) -> Text | Unreadable:
    """The text of all pages, with an empty line between two."""
    from pypdf import PdfReader
    from pypdf.errors import PyPdfError

    try:
        reader = PdfReader(io.BytesIO(content))
        if reader.is_encrypted and not reader.decrypt(""):
            return Unreadable("the document has a password")
        if len(reader.pages) > MAX_PAGES:
            return Unreadable(f"the document has {len(reader.pages)} pages, more than {MAX_PAGES}")
        text = "\n\n".join(page.extract_text().strip() for page in reader.pages)
    except (PyPdfError, ValueError, KeyError, TypeError, RecursionError) as error:
        return Unreadable(f"it is not a PDF that can be read ({error})")
    if not text.strip():
        return Unreadable("the document has no text, only images perhaps")
    return Text(text)


def set_up(_: None) -> tuple[Callable[[Markdown | Pdf], bytes], bytes]:
    return lambda asked: encode_answer(answer(asked)), b""


if __name__ == "__main__":
    serve(set_up)
