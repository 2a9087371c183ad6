"""Which layout a chat template has, found by texts that only such templates hold."""

from __future__ import annotations

import functools
from dataclasses import replace

from engine.chat.layout import Layout, Thinking

THINK = Thinking("<think>", ("</think>",))

# (texts that the template's source holds, its layout); the first row that fits counts.
ROWS: tuple[tuple[tuple[str, ...], Layout], ...] = ()
PLAIN = Layout("plain")


@functools.lru_cache(maxsize=64)
def layout_of(source: str) -> Layout:
    """The layout of a template; ``<think>`` is known wherever its end is mentioned."""
    layout = next(
        (layout for texts, layout in ROWS if all(text in source for text in texts)), PLAIN
    )
    if layout.thinking is None and "</think>" in source:
        return replace(layout, thinking=THINK, tokens=("<think>", "</think>", *layout.tokens))
    return layout
