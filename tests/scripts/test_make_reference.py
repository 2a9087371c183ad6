"""References as scripts/make_reference.py writes them, where llama-cpp-python is installed."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from conformance_data import DATA

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

import make_reference

Run = Callable[..., None]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Run:
    def main(*args: object) -> None:
        monkeypatch.setattr(sys, "argv", ["make_reference.py", *map(str, args)])
        make_reference.main()

    return main


def test_a_reference_is_that_of_tests_data(
    run: Run, conformance_model: Callable[[str], Path], tmp_path: Path
) -> None:
    model, mine = conformance_model("llama-dense"), tmp_path / "mine.npz"
    run(model, mine)
    with np.load(mine) as made, np.load(DATA / "logits" / "llama-dense.npz") as stored:
        assert set(made) == set(stored) == {"tokens", "logits"}
        assert made["tokens"].dtype == stored["tokens"].dtype
        assert np.array_equal(made["tokens"], stored["tokens"])
        assert make_reference.nmse(made["logits"], stored["logits"]) <= make_reference.NMSE


@pytest.mark.parametrize(("name", "code"), [("llama-dense", 0), ("qwen2-dense", 1)])
def test_check_has_an_exit_code(
    run: Run, conformance_model: Callable[[str], Path], name: str, code: int
) -> None:
    with pytest.raises(SystemExit) as caught:
        run(conformance_model("llama-dense"), DATA / "logits" / f"{name}.npz", "--check")
    assert caught.value.code == code
