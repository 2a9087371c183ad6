"""Small models and what llama.cpp computes with them: in tests/data, and more in ../shared.

``specs/NAME.json`` has a model's metadata and the shapes of its tensors, from which
``random_model.py`` builds it; ``logits/NAME.npz`` has its reference, as
``scripts/make_reference.py`` writes it. What tests that run daily need is in ``tests/data``.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Spec = dict[str, Any]

DATA = Path(__file__).parent / "data" / "conformance"
SHARED = Path(__file__).resolve().parents[2] / "shared" / "conformance"


def names() -> list[str]:
    """The models that there is a spec of."""
    return sorted({path.stem for root in (DATA, SHARED) for path in root.glob("specs/*.json")})


def second_names() -> list[str]:
    """Those that ../shared has apart: variants, and models that give something else than logits."""
    return sorted(path.stem for path in SHARED.glob("second/specs/*.json"))


def read_spec(name: str) -> Spec:
    """The spec of a model, as "llama-dense", or at a path that ends in ".json"."""
    path = Path(name) if name.endswith(".json") else _find(f"specs/{name}.json")
    spec: Spec = json.loads(path.read_text(encoding="utf-8"))
    return spec


def reference(name: str) -> tuple[list[int], npt.NDArray[np.float32]]:
    """The tokens [n], at positions from 0 on, and the logits after each: float32 [n, n_vocab]."""
    with np.load(_find(f"logits/{name}.npz")) as arrays:
        return arrays["tokens"].tolist(), arrays["logits"]


def arrays(name: str) -> dict[str, npt.NDArray[Any]]:
    """All that a reference has."""
    with np.load(_find(f"logits/{name}.npz")) as found:
        return dict(found)


def _find(file: str) -> Path:
    """A file of either folder; the test is skipped where neither has it."""
    found = [root / file for root in (DATA, SHARED, SHARED / "second") if (root / file).is_file()]
    if not found:
        import pytest  # here, since scripts of an interpreter without it use this module

        pytest.skip(f"{file} is not in tests/data/conformance, nor in ../shared/conformance")
    return found[0]
