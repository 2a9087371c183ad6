"""Experts of odd sizes, and others by layer."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance_data import reference
from gguf import GGMLQuantizationType, GGUFReader
from gguf.quants import quantize
from model_files import copy_model
from stepping import Stepper, nmse, sequence

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

TABLE = [3, 7, 5]


def cut(path: Path, target: Path, n: int, *, zeros: bool, kind: str = "") -> Path:
    """A model whose experts have n rows, of which the others are zeros if there are any."""
    tensors, types = dict[str, Any](), {}
    for tensor in GGUFReader(path).tensors:
        data: Any = np.array(tensor.data)
        if "_exps.weight" in tensor.name:
            rows = data.swapaxes(1, 2) if "down" in tensor.name else data
            kept = rows[:, :n]
            if zeros:
                kept = np.concatenate([kept, np.zeros_like(rows[:, n:])], axis=1)
            data = np.ascontiguousarray(kept.swapaxes(1, 2) if "down" in tensor.name else kept)
            if kind and "down" not in tensor.name:
                types[tensor.name] = GGMLQuantizationType[kind]
                data = quantize(data, types[tensor.name])
        tensors[tensor.name] = data
    return copy_model(path, target, tensors, types)


@pytest.mark.whole_models
@pytest.mark.parametrize("kind", ["", "Q4_0"])
def test_experts_of_40_rows(
    kind: str, device: Device, programs: Programs, tmp_path: Path,
    conformance_model: Callable[[str], Path],
) -> None:  # fmt: skip
    """Kernels take 32 rows of gate and up at once; down has 40 columns then, of floats."""
    tokens, _ = reference("llama-moe")
    found = [
        Stepper(
            cut(conformance_model("llama-moe"), tmp_path / str(zeros), 40, zeros=zeros, kind=kind),
            device, programs,
        ).run(sequence(tokens, 1, TABLE), [60, 1])
        for zeros in (False, True)
    ]  # fmt: skip
    assert nmse(found[0], found[1]) <= 1e-12


@pytest.mark.whole_models
@pytest.mark.parametrize("name", ["nemotron_h_moe-puzzle", "nemotron_h_moe-mtp"])
def test_counts_by_layer_and_a_latent_space(
    name: str, device: Device, programs: Programs, conformance_model: Callable[[str], Path]
) -> None:
    """Pruned, with others in each layer; and with one more layer, which predicts further ahead."""
    tokens, logits = reference(name)
    model = Stepper(conformance_model(name), device, programs)
    assert nmse(model.run(sequence(tokens, 1, TABLE), [60, 1]), logits[:61]) <= 1e-10
