"""The conformance data of tests/data: enough for the daily tests, small, as in ../shared."""

from __future__ import annotations

from pathlib import Path

import conformance_data
import numpy as np
import pytest
from conformance_data import DATA, SHARED, read_spec, reference

TESTS = Path(__file__).parent
MOST_BYTES = 1_000_000  # of what every clone of the repository has to carry


def test_it_is_small() -> None:
    files = [path for path in (TESTS / "data").rglob("*") if path.is_file()]
    assert files
    assert sum(path.stat().st_size for path in files) < MOST_BYTES


def test_every_reference_has_a_spec() -> None:
    for path in DATA.glob("logits/*.npz"):
        spec, (tokens, logits) = read_spec(path.stem), reference(path.stem)
        _, n_vocab = spec["kv"][f"{spec['arch']}.vocab_size"]
        assert logits.shape == (len(tokens), n_vocab), path.stem
        assert logits.dtype == np.float32


@pytest.mark.parametrize("kind", ["specs/*.json", "logits/*.npz"])
def test_it_is_that_of_shared(shared: Path, kind: str) -> None:
    """Byte by byte, as far as both have it."""
    both = [path for path in DATA.glob(kind) if (SHARED / path.relative_to(DATA)).is_file()]
    assert both
    for path in both:
        assert path.read_bytes() == (SHARED / path.relative_to(DATA)).read_bytes(), path.name


def test_it_has_every_model_that_a_test_names(shared: Path) -> None:
    """So that no such test is skipped where there is no ../shared."""
    sources = [path.read_text(encoding="utf-8") for path in TESTS.rglob("*.py")]
    missing = [
        path.stem
        for path in SHARED.glob("specs/*.json")
        if not (DATA / "specs" / path.name).is_file()
        and any(f'"{path.stem}"' in source for source in sources)
    ]
    assert not missing


def test_without_shared(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What tests/data has is found, and what is skipped says what is missing."""
    monkeypatch.setattr(conformance_data, "SHARED", tmp_path)
    assert "llama-dense" in conformance_data.names()
    assert read_spec("llama-dense")["arch"] == "llama"
    assert len(reference("llama-dense")[0]) == 64
    with pytest.raises(pytest.skip.Exception, match=r"logits/none\.npz is not in tests/data"):
        reference("none")
