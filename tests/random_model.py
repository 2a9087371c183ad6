"""Builds a small GGUF model with random weights from its spec: the same file on every machine.

    python tests/random_model.py llama-dense model.gguf

A spec (``data/conformance/specs/NAME.json``) is a JSON object of

    arch      the architecture, as in general.architecture
    seed      of the weights, together with the tensor's name
    kv        metadata: {key: [type of GGUF, value]}, an array's type being "array:UINT32"
    tensors   [[name, shape, type]]: the fastest dimension first, F32, F16 or I64
    values    optional: {name: distribution or numbers}, see ``given_values``

References depend on every bit of the weights: what is drawn here, and in which order, stays.
"""

from __future__ import annotations

import sys
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from conformance_data import Spec, read_spec

Floats = npt.NDArray[np.float32]
TYPES: dict[str, type[np.generic]] = {"F32": np.float32, "F16": np.float16, "I64": np.int64}
ENCODER_PARTS = ("v", "a", "mm", "resampler")  # first parts of the names in projector files


def build(spec: Spec, path: Path) -> Path:
    """Writes the model of a spec to ``path``, and returns that."""
    writer, values = start(spec, path), spec.get("values", {})
    for name, shape, kind in spec["tensors"]:
        rng = np.random.default_rng([spec["seed"], zlib.crc32(name.encode())])
        if name in values:
            data = given_values(values[name], shape, rng)
        else:
            data = random_weights(name, shape, rng)
        writer.add_tensor(name, data.astype(TYPES[kind]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def start(spec: Spec, path: Path) -> gguf.GGUFWriter:
    """A writer that has been given the metadata of a spec, but no tensors."""
    writer = gguf.GGUFWriter(path, spec["arch"])
    for key, (kind, value) in spec["kv"].items():
        if key == "general.architecture":  # the writer has it already
            continue
        if kind.startswith("array:"):
            sub = gguf.GGUFValueType[kind.removeprefix("array:")]
            writer.add_key_value(key, value, gguf.GGUFValueType.ARRAY, sub_type=sub)
        else:
            writer.add_key_value(key, value, gguf.GGUFValueType[kind])
    return writer


def random_weights(name: str, shape: Sequence[int], rng: np.random.Generator) -> Floats:
    """Weights of such sizes that activations stay near 1; ``shape`` as in the spec."""
    normal = rng.standard_normal(shape[::-1], dtype=np.float32)
    if name.split(".")[0] in ENCODER_PARTS:
        return _encoder_weights(name, shape, normal)
    if name.startswith(("rope_freqs", "rope_factors")):
        return (1.0 + 3.0 * rng.random(shape[::-1])).astype(np.float32)
    if "ssm_a" in name:
        return -np.abs(normal) - np.float32(0.1)
    if "norm" in name and name.endswith("weight"):
        return 1 + np.float32(0.1) * normal
    if len(shape) == 1 or name.endswith("bias"):
        return np.float32(0.1) * normal
    if name == "token_embd.weight":
        return normal
    return normal / np.float32(np.sqrt(shape[0]))


def _encoder_weights(name: str, shape: Sequence[int], normal: Floats) -> Floats:
    """The same for an encoder of images or sounds (architecture ``clip``)."""
    if name.endswith("bias"):
        return np.float32(0.1) * normal
    if name.endswith(("_max", "_min")):  # bounds of activations
        return (1 + np.abs(normal)) * np.float32(1 if name.endswith("_max") else -1)
    if len(shape) == 1:
        return 1 + np.float32(0.1) * normal if name.endswith("weight") else normal
    if name.endswith("position_embd.weight"):
        return np.float32(0.5) * normal
    if name == "resampler.query":
        return normal
    return normal / np.float32(np.sqrt(np.prod(shape[:-1])))


def given_values(values: list[Any], shape: Sequence[int], rng: np.random.Generator) -> Floats:
    """A spec's numbers for a tensor, or ["normal", mean, deviation] or ["uniform", low, high];
    a fourth item n sets the first n slices along the slowest dimension to zero."""
    if not isinstance(values[0], str):
        return np.array(values, dtype=np.float32).reshape(shape[::-1])
    kind, a, b, *zeros = values
    drawn: Floats
    if kind == "normal":
        drawn = a + b * rng.standard_normal(shape[::-1], dtype=np.float32)
    elif kind == "uniform":
        drawn = a + (b - a) * rng.random(shape[::-1], dtype=np.float32)
    else:
        raise ValueError(f"unknown distribution {kind!r}, expected 'normal' or 'uniform'")
    if zeros:
        drawn[: zeros[0]] = 0
    return drawn.astype(np.float32)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    build(read_spec(sys.argv[1]), Path(sys.argv[2]))
