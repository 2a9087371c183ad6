"""Sparse attention of whole models: beyond as many keys as the indexer chooses, some are left."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from stepping import Stepper, nmse, sequence

from kernels.device import Device
from kernels.program import Programs

TABLE = [3, 7, 5, 9, 2, 11, 1, 0]
TOP_K = 24
MORE = ["glm-dsa-moe", "hy_v4-moe", "dots3note-moe"]


@pytest.mark.parametrize(
    "name", ["deepseek32-moe", *(pytest.param(name, marks=pytest.mark.slow) for name in MORE)]
)
def test_contexts_beyond_the_choice(
    device: Device,
    programs: Programs,
    shared: Path,
    conformance_model: Callable[[str], Path],
    tmp_path: Path,
    name: str,
) -> None:
    """Up to the indexer's number of keys the logits are the reference's, which uses all keys;
    after it they are others, the same however the prompt is divided."""
    folder = shared / "conformance"
    spec = json.loads((folder / "specs" / f"{name}.json").read_text(encoding="utf-8"))
    spec["kv"][f"{spec['arch']}.attention.indexer.top_k"] = ["UINT32", TOP_K]
    path = tmp_path / f"{name}-{TOP_K}.json"
    path.write_text(json.dumps(spec), encoding="utf-8")
    with np.load(folder / "logits" / f"{name}.npz") as arrays:
        tokens, logits = arrays["tokens"].tolist(), arrays["logits"]
    model = Stepper(conformance_model(str(path)), device, programs)
    whole = model.run(sequence(tokens, 1, TABLE), [64])
    assert nmse(whole[:TOP_K], logits[:TOP_K]) <= 1e-10
    assert nmse(whole[TOP_K:], logits[TOP_K:]) >= 1e-4
    for counts in ([40] + [1] * 24, [7, 20, 37]):
        assert nmse(model.run(sequence(tokens, 2, TABLE), counts), whole) <= 1e-10
