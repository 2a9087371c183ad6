"""The layers of a file that predict further tokens (``nextn_predict_layers``), each as a model.

Such a head is a layer like the others, and its own or the model's embedding, norm and output. Seen
as a file with one layer, it is loaded, checked and placed as other models are. What is new is what
it reads: beside each token the state that the target has of the one before (layers/nextn.py).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TypeVar

import numpy as np
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Architecture, Hyperparameters
from gguf_serve.engine.architecture.hyperparameters import read_hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile

T = TypeVar("T")
# What a head has itself, by what it is in a model; the first that the file has.
OWN = {
    "output_norm": ("nextn.shared_head_norm", "layer_output_norm"),
    "output": ("nextn.shared_head_head",),
    "token_embd": ("nextn.embed_tokens",),
}


def count_heads(gguf: GGUFFile) -> int:
    """How many heads the file has."""
    return gguf.get_int(gguf.arch_key("nextn_predict_layers"), 0)


def read_head(gguf: GGUFFile, arch: Architecture, number: int) -> tuple[GGUFFile, Hyperparameters]:
    """Head ``number`` of a file, as a file of its own; ModelError if there is no such head, or what
    is read cannot be."""
    n = count_heads(gguf)
    if not 0 <= number < n:
        raise ModelError(f"{gguf.path}: there is no head {number} of speculation, of {n}")
    layer = gguf.get_int(gguf.arch_key("block_count")) - n + number
    if not any(name.startswith(f"blk.{layer}.") for name in gguf.tensors):
        key = gguf.arch_key("nextn_predict_layers")
        raise ModelError(
            f"{gguf.path}: {key} is {n}, but no tensors of layer {layer} are there; llama.cpp "
            "leaves them out of the files that it saves"
        )
    none = {gguf.arch_key("nextn_predict_layers"): 0}
    h = read_hyperparameters(gguf.with_metadata({**gguf.metadata, **none}), arch)
    pattern = gguf.metadata.get(gguf.arch_key("attention.sliding_window_pattern"))
    if not (arch.window_all or isinstance(pattern, np.ndarray)):
        # "Every n-th layer" does not go on in heads: they see all keys.
        h = replace(h, windowed=(False,) * h.n_layers, rope=(any(h.rope),) * h.n_layers)
    own = of_layers(h, slice(layer, layer + 1))
    return _as_model(gguf, layer), replace(own, takes_states=True)


def _as_model(gguf: GGUFFile, layer: int) -> GGUFFile:
    own = {
        match[1]: info
        for name, info in gguf.tensors.items()
        if (match := re.fullmatch(rf"blk\.{layer}\.(.+)", name)) is not None
    }
    found = {name: info for name, info in gguf.tensors.items() if not name.startswith("blk.")}
    if "output.weight" not in found:
        found["output.weight"] = found["token_embd.weight"]
    for name, others in OWN.items():
        named = [own.pop(f"{other}.weight", None) for other in others]
        info = next((info for info in named if info is not None), None)
        if info is not None:
            found[f"{name}.weight"] = info
    return gguf.with_tensors(found | {f"blk.0.{name}": info for name, info in own.items()})


def of_layers(h: Hyperparameters, layers: slice) -> Hyperparameters:
    """Those of a model that has these layers alone, and K and V of its own in each."""

    def some(values: Sequence[T]) -> tuple[T, ...]:
        return tuple(values[layers])

    e, s, n = h.experts, h.sparsity, len(h.n_heads[layers])
    return replace(
        h, n_layers=n, n_heads=some(h.n_heads), n_kv=some(h.n_kv), kv_layers=tuple(range(n)),
        rope=some(h.rope), windowed=some(h.windowed), compress_ratios=some(h.compress_ratios),
        xielu=some(h.xielu), sparsity_cutoffs=some(h.sparsity_cutoffs), deepstack=(),
        experts=replace(
            e, used=some(e.used), limits=some(e.limits), shared_limits=some(e.shared_limits)
        ),
        sparsity=s if s is None else replace(s, layers=some(s.layers)),
    )  # fmt: skip
