"""The codebooks in kernels/quantization/grids.cl are those of the gguf package."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="the gguf package has the codebooks")

import make_grids

GRIDS = Path(__file__).resolve().parents[2] / "kernels" / "quantization" / "grids.cl"


def test_the_file_is_what_the_script_writes(capsys: pytest.CaptureFixture[str]) -> None:
    make_grids.main()
    assert capsys.readouterr().out == GRIDS.read_text(encoding="utf-8")


def test_an_entry_has_its_first_column_in_the_lowest_bits() -> None:
    """Of IQ2_XXS, entry 1 is 43 and then seven times 8; of IQ3_XXS, entry 1 is 20, 4, 4, 4."""
    assert make_grids.entries("IQ2_XXS")[:2] == [0, 2]
    assert make_grids.entries("IQ3_XXS")[:2] == [0, 2]
