"""Control vectors against the same vectors as biases of the layers' last matrices."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader, GGUFWriter
from model_files import copy_model
from stepping import Floats, Stepper, nmse, sequence

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.loading.control import read_directions
from gguf_serve.engine.options import ControlVectors
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs


def write_vectors(path: Path, vectors: dict[str, Floats]) -> Path:
    writer = GGUFWriter(path, "controlvector")
    for name, vector in vectors.items():
        writer.add_tensor(name, vector)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_like_biases(
    device: Device, programs: Programs, conformance_model: Callable[[str], Path], tmp_path: Path
) -> None:
    """Two files, one of them scaled; the last layer alone is in the range."""
    base = conformance_model("llama-dense")
    tensors = {t.name: np.array(t.data) for t in GGUFReader(base).tensors}
    n_layers = 1 + max(int(name.split(".")[1]) for name in tensors if name.startswith("blk."))
    last, n_embd = n_layers - 1, tensors["output_norm.weight"].size
    rng = np.random.default_rng(1)
    one, other = rng.standard_normal((2, n_embd), dtype=np.float32)
    files = (
        (write_vectors(tmp_path / "a.gguf", {f"direction.{last}": one}), 1.0),
        (
            write_vectors(tmp_path / "b.gguf", {f"direction.{last}": other, "direction.99": one}),
            -0.5,
        ),
    )
    bias = f"blk.{last}.ffn_down.bias"
    tensors[bias] = tensors.get(bias, np.float32(0)) + one - np.float32(0.5) * other
    biased = copy_model(base, tmp_path / "biased.gguf", tensors)
    tokens = list(range(5, 45))
    steered = Stepper(base, device, programs, control=ControlVectors(files, (last, last)))
    found, expected, plain = (
        model.run(sequence(tokens, 1, [3, 7]), [30, 1, 9])
        for model in (
            steered, Stepper(biased, device, programs), Stepper(base, device, programs)
        )
    )  # fmt: skip
    assert nmse(found, expected) < 1e-11
    assert nmse(plain, expected) > 1e-3


def test_layers_in_the_range(tmp_path: Path) -> None:
    vector = np.ones(4, np.float32)
    path = write_vectors(tmp_path / "a.gguf", {f"direction.{i}": vector for i in range(1, 9)})
    files = ((path, 2.0),)
    assert sorted(read_directions(ControlVectors(files), 6, 4)) == [1, 2, 3, 4, 5]
    found = read_directions(ControlVectors(files, (3, 4)), 6, 4)
    assert sorted(found) == [3, 4]
    assert (found[3] == 2).all()


@pytest.mark.parametrize(
    ("name", "n", "message"),
    [("direction.2", 5, r"direction.2 is F32 of shape \(5,\)"), ("head.1", 4, "head.1 is not")],
)
def test_what_does_not_fit(tmp_path: Path, name: str, n: int, message: str) -> None:
    path = write_vectors(tmp_path / "a.gguf", {name: np.ones(n, np.float32)})
    with pytest.raises(ModelError, match=message):
        read_directions(ControlVectors(((path, 1.0),)), 6, 4)
