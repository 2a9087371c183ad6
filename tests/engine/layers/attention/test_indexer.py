"""Sparse attention of whole models against llama.cpp's logits, beyond where a choice begins.

scripts/make_sparse_references.py has made these (llama-cpp-python 0.3.36).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance_data import read_spec, reference
from stepping import Floats, Stepper, nmse, sequence

from gguf_serve.engine.model.placement import Placement
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

DATA = Path(__file__).resolve().parents[2] / "data"
CASES = json.loads((DATA / "sparse.json").read_text(encoding="utf-8"))
FAST = ["deepseek32", "deepseek4", "glm5-next", "qwen4exp", "minimax-m3", "minimax-m3-pages"]
TABLE = [3, 7, 5, 9]
# llama.cpp's flash attention, which minimax-m3 needs there, is good for 1e-8; others for 1e-11.
NMSE = 1e-7

Load = Callable[[str, Device, Programs], Stepper]


@pytest.fixture(scope="session")
def load(
    conformance_model: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Load:
    """Loads a model of the conformance data with the settings of a case."""
    folder = tmp_path_factory.mktemp("sparse")

    def loaded(name: str, device: Device, programs: Programs) -> Stepper:
        return Stepper(conformance_model(str(spec_of(name, folder))), device, programs)

    return loaded


def spec_of(name: str, folder: Path, **settings: list[Any]) -> Path:
    """The spec of a case, and further settings, as a file."""
    spec = read_spec(CASES[name]["spec"])
    for key, value in (CASES[name]["kv"] | settings).items():
        spec["kv"][f"{spec['arch']}.{key}"] = value
    result = folder / f"{name}.json"
    result.write_text(json.dumps(spec), encoding="utf-8")
    return result


def compared(name: str, rows: Floats) -> Floats:
    """Of the last rows those that are defined alike. Of qwen4exp's tail the published model, and
    later llama.cpp, see what is after the last whole block; this one fills it up to three keys
    with a part of the next best block."""
    return rows[2::4] if name == "qwen4exp" else rows


def beside_others(model: Stepper, tokens: list[int]) -> Floats:
    """The logits of a sequence that shares its steps with two of other lengths."""
    rng = np.random.default_rng(1)
    me = sequence(tokens, 1, TABLE)
    others = [
        sequence(rng.integers(model.n_vocab, size=90), slot, pages)
        for slot, pages in ((0, [4, 6, 8]), (2, [2, 11, 1]))
    ]
    rows = [
        model.step((others[0], 35), (me, 50), (others[1], 5))[1],
        model.step((others[0], 1), (me, 1), (others[1], 1))[1],
        model.step((me, 20), (others[1], 50))[0],
        *(model.step((me, 1), (others[1], 1), (others[0], 1))[0] for _ in range(9)),
        model.step((others[1], 20), (me, 40))[1],
    ]
    return np.concatenate(rows)


@pytest.mark.whole_models(FAST[0])
@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=() if name in FAST else pytest.mark.slow) for name in CASES],
)
def test_contexts_beyond_the_choice(
    load: Load, device: Device, programs: Programs, name: str
) -> None:
    """Up to the indexer's number of keys the logits are those of all keys, then llama.cpp's
    choice's; at once, one by one, in uneven chunks and beside other sequences."""
    case = CASES[name]
    with np.load(DATA / "sparse.npz") as arrays:
        tokens, expected = arrays["tokens"].tolist(), arrays[name]
    first_tokens, dense = reference(case["spec"])
    assert first_tokens == tokens[:64]
    model, first = load(name, device, programs), case["first"]
    whole = model.run(sequence(tokens, 1, TABLE), [96, 24])
    assert nmse(whole[:first], dense[:first]) <= 1e-10
    if first < 64:
        assert nmse(whole[first:64], dense[first:]) >= 1e-4
    assert nmse(compared(name, whole[-24:]), compared(name, expected)) <= NMSE
    for counts in ([60] + [1] * 60, [7, 20, 37, 3, 53]):
        assert nmse(model.run(sequence(tokens, 1, TABLE), counts), whole) <= 1e-10
    assert nmse(beside_others(model, tokens), whole) <= 1e-10


@pytest.mark.whole_models
@pytest.mark.parametrize("name", ["hy_v4", pytest.param("dots3note", marks=pytest.mark.slow)])
def test_a_choice_is_carried_to_another_device(
    device: Device,
    programs: Programs,
    conformance_model: Callable[[str], Path],
    tmp_path: Path,
    name: str,
) -> None:
    """Of the two layers the second, on another device, uses what the first one's indexer found."""
    with np.load(DATA / "sparse.npz") as arrays:
        tokens, expected = arrays["tokens"].tolist(), arrays[name]
    path = conformance_model(str(spec_of(name, tmp_path)))
    for layers, ends in (((0, 1), (0, 1)), ((1, 0), (0, 0))):
        model = Stepper(
            path, device, programs, others=[(device, programs)],
            place=lambda n, on=layers, at=ends: Placement(at[0], on, on, at[1]),
        )  # fmt: skip
        rows = model.run(sequence(tokens, 1, TABLE), [96, 1, 1, 22])
        assert nmse(rows[-24:], expected) <= NMSE
