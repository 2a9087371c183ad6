"""Write README's table of architectures anew, from the table that the engine has."""

from __future__ import annotations

import re
from pathlib import Path

from gguf_serve.engine.architecture.table import KINDS

README = Path(__file__).resolve().parents[1] / "README.md"
HEADER = "| layers | architectures |\n|---|---|\n"


def table() -> str:
    """The rows in Markdown: a kind of layers, and the names of architectures that have it."""
    lines = []
    for kind, rows in KINDS.items():
        names = " ".join(f"`{name}`" for name in sorted(row.name for row in rows))
        lines.append(f"| {kind} | {names} |\n")
    return HEADER + "".join(lines)


def with_table(text: str) -> str:
    """A text with the table in place of the one that it has."""
    found, n = re.subn(rf"{re.escape(HEADER)}(\|.*\|\n)+", lambda _: table(), text)
    if n != 1:
        raise SystemExit(f"{n} tables begin with {HEADER!r}, expected 1")
    return found


if __name__ == "__main__":
    README.write_text(with_table(README.read_text("utf-8")), "utf-8")
