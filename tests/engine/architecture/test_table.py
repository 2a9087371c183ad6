"""The table of architectures, and what is made from it."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from click.testing import CliRunner

from gguf_serve.engine.architecture.arch import Quirk
from gguf_serve.engine.architecture.table import (
    ARCHITECTURES,
    DRAFTS,
    DRAFTS_OF_STREAMS,
    KINDS,
    find_architecture,
)
from gguf_serve.engine.errors import ModelError
from gguf_serve.server import cli
from scripts.list_architectures import README, with_table


def test_names_are_there_once() -> None:
    assert len(ARCHITECTURES) == sum(len(rows) for rows in KINDS.values())


def test_an_unknown_architecture_is_named() -> None:
    with pytest.raises(ModelError, match=r"unknown architecture 'nope'; supported: .*llama"):
        find_architecture("nope")


def test_every_quirk_is_had_and_looked_for() -> None:
    """By some row, and by some module; neither may have others."""
    rows = [table.values() for table in (ARCHITECTURES, DRAFTS, DRAFTS_OF_STREAMS)]
    had = {quirk for some in rows for row in some for quirk in row.quirks}
    assert had == set(get_args(Quirk))
    engine = Path(cli.__file__).parents[1] / "engine"
    text = "".join(
        path.read_text("utf-8")
        for path in engine.rglob("*.py")
        if path.parent.name != "families" and path.name != "arch.py"
    )
    arch = (engine / "architecture" / "arch.py").read_text("utf-8").partition("class Architecture")
    missing = [quirk for quirk in had if f'"{quirk}"' not in text + arch[2]]
    assert not missing


def test_the_readme_has_the_table() -> None:
    """``python scripts/list_architectures.py`` writes it."""
    text = README.read_text("utf-8")
    assert with_table(text) == text


def test_the_command_line_lists_the_table() -> None:
    printed = CliRunner().invoke(cli.main, ["--arch-list"]).output.split()
    assert printed == sorted(ARCHITECTURES)
