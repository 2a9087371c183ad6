"""docs/options.md is what the code states."""

from __future__ import annotations

import make_options_doc as doc


def test_the_page_is_up_to_date() -> None:
    """If not: python scripts/make_options_doc.py."""
    assert doc.PATH.read_text("utf-8") == doc.text()


def test_every_option_is_there() -> None:
    lines = doc.text().splitlines()
    for one in doc.stated(doc.Settings):
        assert any(f"`{doc.spellings(one.option)[-1]}`" in line for line in lines)
    assert sum("min_keep" in line for line in lines) == 1
