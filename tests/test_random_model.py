"""The random models of a spec: the files that the references were made with, bit for bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
from conformance_data import read_spec

pytest.importorskip("gguf", reason="the gguf package writes the models")

from gguf import GGUFReader
from random_model import build, given_values

# Of every kind of weights: Mamba's, factors of RoPE, an encoder's, distributions and numbers.
SPECS = [
    "specs/llama-dense.json", "specs/jamba-dense.json", "vision/specs/lfm2.json",
    "vision/specs/qwen2a.json", "second/specs/rwkv7.json", "second/specs/graniteswitch.json",
    "second/specs/eagle3.json",
]  # fmt: skip


@pytest.mark.parametrize("spec", SPECS)
def test_the_file_is_that_of_shareds_script(shared: Path, tmp_path: Path, spec: str) -> None:
    path = shared / "conformance" / spec
    found = importlib.util.spec_from_file_location(
        "make_model", shared / "conformance" / "make_model.py"
    )
    assert found is not None
    assert found.loader is not None
    script = importlib.util.module_from_spec(found)
    found.loader.exec_module(script)
    expected = script.build(str(path), tmp_path / "expected.gguf")
    built = build(read_spec(str(path)), tmp_path / "built.gguf")
    assert built.read_bytes() == expected.read_bytes()


def test_weights_depend_on_seed_and_name(tmp_path: Path) -> None:
    kv = {"llama.block_count": ["UINT32", 1]}
    tensors = [["a.weight", [4, 2], "F32"], ["b.weight", [4, 2], "F16"]]

    def drawn(seed: int) -> dict[str, np.ndarray]:
        spec = {"arch": "llama", "seed": seed, "kv": kv, "tensors": tensors}
        reader = GGUFReader(build(spec, tmp_path / "model.gguf"))
        return {tensor.name: np.array(tensor.data) for tensor in reader.tensors}

    one, same, other = drawn(1), drawn(1), drawn(2)
    assert one["a.weight"].shape == (2, 4)
    assert one["a.weight"].tobytes() == same["a.weight"].tobytes()
    assert one["a.weight"].tobytes() != other["a.weight"].tobytes()
    assert not np.allclose(one["a.weight"], one["b.weight"], atol=1e-2)


def test_given_values() -> None:
    def given(*values: object) -> np.ndarray:
        return given_values(list(values), [1000, 3], np.random.default_rng(1))

    normal = given("normal", 2.0, 0.5, 1)
    assert normal.shape == (3, 1000)
    assert normal.dtype == np.float32
    assert not normal[0].any()
    assert np.isclose(normal[1:].mean(), 2, atol=0.05)
    assert np.isclose(normal[1:].std(), 0.5, atol=0.05)
    uniform = given("uniform", 3.0, 4.0)
    assert uniform.min() >= 3
    assert uniform.max() <= 4
    assert given_values([1, 2], [2], np.random.default_rng(1)).tolist() == [1, 2]
    with pytest.raises(ValueError, match="unknown distribution 'gamma', expected"):
        given("gamma", 1.0, 2.0)
