"""Writes tests/engine/data/sparse.npz: llama.cpp's logits of small models with sparse attention.

    other-venv/bin/python scripts/make_sparse_references.py

Runs in an interpreter with llama-cpp-python and gguf. The models are those of the conformance data
with the settings of sparse.json, so that their indexers choose from few tokens on. KV caches are
f32. Flash attention is on where the model is minimax-m3: without it llama.cpp attends to all keys.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from make_reference import logits

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tests"))

from conformance_data import read_spec, reference  # noqa: E402
from random_model import build  # noqa: E402

DATA = ROOT / "tests" / "engine" / "data"
N_TOKENS, N_LAST = 120, 24


def main() -> None:
    first, _ = reference("glm5-next-moe")
    more = np.random.default_rng(5).integers(128, size=N_TOKENS - len(first))
    tokens = np.array([*first, *more], np.int32)
    found: dict[str, Any] = {"tokens": tokens}
    for name, case in json.loads((DATA / "sparse.json").read_text(encoding="utf-8")).items():
        spec = read_spec(case["spec"])
        spec["kv"] |= {f"{spec['arch']}.{key}": value for key, value in case["kv"].items()}
        with tempfile.TemporaryDirectory() as folder:
            path = build(spec, Path(folder) / f"{name}.gguf")
            rows = logits(path, tokens, flash=spec["arch"] == "minimax-m3")
        found[name] = rows[-N_LAST:]
    np.savez_compressed(DATA / "sparse.npz", **found)


if __name__ == "__main__":
    main()
