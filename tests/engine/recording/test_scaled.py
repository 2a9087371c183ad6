"""Scales of the file beside matrices of any type: what they multiply is what it was."""

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


def written(path: Path, target: Path, kind: str, scales: tuple[float, ...]) -> Path:
    """A model whose matrices in layers are divided by scales, in turn, which stand beside them;
    experts have one each. ``input_scale``, which changes nothing in llama.cpp, is there too."""
    tensors, types = dict[str, Any](), {}
    for tensor in GGUFReader(path).tensors:
        data: Any = np.array(tensor.data)
        tensors[tensor.name] = data
        inside = tensor.name.startswith("blk.") and tensor.name.endswith(".weight")
        if data.ndim < 2 or not inside:
            continue
        n = len(data) if data.ndim == 3 else 1
        own = np.resize(np.float32(scales), len(tensors) + n)[-n:]
        data = data / (own[:, None, None] if data.ndim == 3 else own[0])
        if kind != "F32":
            types[tensor.name] = GGMLQuantizationType[kind]
            data = quantize(data, types[tensor.name])
        base = tensor.name.removesuffix(".weight")
        tensors[tensor.name], tensors[f"{base}.scale"] = data, own
        tensors[f"{base}.input_scale"] = np.full(n, 3.0, np.float32)
    return copy_model(path, target, tensors, types)


@pytest.mark.whole_models
@pytest.mark.parametrize(
    ("name", "kind"), [("qwen2-dense", "Q8_0"), ("gpt-oss-moe", "F32"), ("gpt-oss-moe", "Q8_0")]
)
def test_scales(
    name: str, kind: str, device: Device, programs: Programs, tmp_path: Path,
    conformance_model: Callable[[str], Path],
) -> None:  # fmt: skip
    """Powers of two leave the codes of quantized blocks as they are."""
    tokens, logits = reference(name)
    path = conformance_model(name)
    seq = sequence(tokens, 1, TABLE)
    scales = (1.0, 4.0, 0.5) if kind == "Q8_0" else (0.3, 1.0, 7.0)
    scaled = Stepper(written(path, tmp_path / "a", kind, scales), device, programs)
    found = scaled.run(seq, [60, 1, 1])
    if kind == "Q8_0":
        plain = Stepper(written(path, tmp_path / "b", kind, (1.0,)), device, programs)
        logits = plain.run(sequence(tokens, 1, TABLE), [60, 1, 1])
    assert nmse(found, logits[:62]) <= 1e-10
