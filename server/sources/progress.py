"""How far a download is: a bar on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
from typing import Any

import click
from tqdm import tqdm

EVERY = 10.0  # seconds between two lines


class Progress(tqdm):  # type: ignore[misc]
    """tqdm's bar in bytes; where nobody watches a terminal, lines that a log can keep."""

    def __init__(self, *args: Any, **how: Any) -> None:
        self.has_terminal = sys.stderr.isatty()
        how |= {"unit": "B", "unit_scale": True, "unit_divisor": 1024, "disable": False}
        how |= {"file": sys.stderr, "mininterval": 0.1 if self.has_terminal else EVERY}
        how.pop("name", None)
        super().__init__(*args, **how)

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        if self.has_terminal:
            return bool(super().display(msg, pos))
        done, size = int(self.n) >> 20, int(self.total or 0) >> 20
        click.echo(f"downloading {self.desc or ''}: {done} of {size} MiB", err=True)
        return True
