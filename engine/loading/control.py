"""Control vectors (https://arxiv.org/abs/2310.01405): directions added to what layers yield."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.errors import ModelError, naming
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.options import ControlVectors

PREFIX = "direction."


def read_directions(
    control: ControlVectors, n_layers: int, n_embd: int
) -> dict[int, npt.NDArray[np.float32]]:
    """The sum of the files' vectors by layer, float32 [n_embd]; ModelError for what does not fit
    the model."""
    found: dict[int, npt.NDArray[np.float32]] = {}
    for path, strength in control.files:
        with open_gguf(path) as gguf, naming(path):
            for name, info in gguf.tensors.items():
                layer = _layer(path, name)
                if info.shape != (n_embd,) or info.type.name != "F32":
                    raise ModelError(
                        f"{path}: tensor {name} is {info.type.name} of shape {info.shape}, "
                        f"not F32 of ({n_embd},)"
                    )
                vector = strength * gguf.data(name).view(np.float32)
                found[layer] = found.get(layer, np.float32(0)) + vector.astype(np.float32)
    first, last = control.layers or (1, n_layers - 1)
    return {i: vector for i, vector in found.items() if first <= i <= last and 0 < i < n_layers}


def _layer(path: Path, name: str) -> int:
    number = name.removeprefix(PREFIX)
    if not name.startswith(PREFIX) or not number.isdecimal() or int(number) < 1:
        raise ModelError(f"{path}: tensor {name} is not the direction of a layer (direction.N)")
    return int(number)
