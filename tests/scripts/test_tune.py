"""What scripts/tune.py stores."""

from __future__ import annotations

import json
from pathlib import Path

import tune

from gguf_serve.kernels.opencl.tuning import Tuning, find_tuning


def test_stores_what_differs_from_the_default_and_keeps_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "tuning.json"
    table = {
        "default": {"ranges": 2},
        "vendors": {"ACME": {"slices": 4}},
        "devices": {"ACME 9": {"ranges": 8}},
    }
    path.write_text(json.dumps(table), encoding="utf-8")
    tune.store(path, "devices", "ACME 9", Tuning(ranges=2, slices=16))
    stored = json.loads(path.read_text(encoding="utf-8"))
    assert stored == table | {"devices": {"ACME 9": {"slices": 16}}}
    assert find_tuning("ACME 9", "ACME", stored) == Tuning(ranges=2, slices=16)
