"""Tensors that cannot be right are refused by their shapes, before anything is allocated.

The loaders believe the file: what it has decides what a layer is. So this looks at what no
variant of a layer changes: widths that the metadata fixes, biases as long as their matrix
has rows, and the tensors that files of an architecture must have (engine/models/needs.py).
"""

from __future__ import annotations

from collections.abc import Collection
from math import prod

from engine.errors import ModelError
from engine.gguf import GGUFFile
from engine.models.arch import Hyperparameters
from engine.models.needs import Need, group_of, needs_of

BARE = ("ssm_a", "ssm_d", "hrm.z_l_init")  # names of tensors without ".weight"
STREAM_NORMS = ("attn_norm", "ffn_norm", "post_attention_norm", "post_ffw_norm")
Shape = tuple[int, ...]


def check_tensors(gguf: GGUFFile, h: Hyperparameters) -> None:
    """Raises ModelError that names the first tensor which is missing or of a wrong shape."""
    shapes = {name: info.shape for name, info in gguf.tensors.items()}
    _check_needs(gguf, h)
    _check_ends(gguf, h, shapes)
    for name, shape in shapes.items():
        if name.endswith(".bias"):
            _check_bias(gguf, shapes, name, shape)
    for layer in range(h.n_layers):
        _check_layer(gguf, h, shapes, f"blk.{layer}.")


def _check_needs(gguf: GGUFFile, h: Hyperparameters) -> None:
    needs, names = needs_of(h.arch.name), gguf.tensors.keys()
    for need in needs.ends:
        _check_need(gguf, need, "", names)
    by_layer: dict[str, set[str]] = {}
    for layer, _, rest in (name.removeprefix("blk.").partition(".") for name in names):
        by_layer.setdefault(layer, set()).add(rest)
    n_layers = h.n_layers if h.cycles is None else 2 * h.cycles[0]
    for i in range(n_layers):
        here = by_layer.get(str(i), set())
        groups = {group_of(name) for name in here} | {""}
        if needs.ordinary:
            groups |= {"attention"} | ({"ffn"} if "experts" not in groups else set())
        for need in needs.layers:
            if need.group in groups:
                _check_need(gguf, need, f"blk.{i}.", here)


def _check_need(gguf: GGUFFile, need: Need, b: str, here: Collection[str]) -> None:
    """``here``: the names of tensors of the same layer, ``b`` what comes before them."""
    if not any(name in here or f"{name}.weight" in here for name in need.names + need.excuses):
        full = [
            name if name in BARE or name.endswith(".bias") else f"{name}.weight"
            for name in need.names
        ]
        raise ModelError(f"{gguf.path}: tensor {' or '.join(b + n for n in full)} is missing")


def _wrong(gguf: GGUFFile, name: str, shape: Shape, expected: object) -> ModelError:
    return ModelError(f"{gguf.path}: tensor {name} has shape {shape}, not {expected}")


def _check_ends(gguf: GGUFFile, h: Hyperparameters, shapes: dict[str, Shape]) -> None:
    expected: dict[str, Shape] = {
        "output.weight": (h.n_embd, h.n_vocab),
        "output.bias": (h.n_vocab,),
        "rope_freqs.weight": (h.n_rot // 2,),
    }
    for name, shape in expected.items():
        if name in shapes and shapes[name] != shape:
            raise _wrong(gguf, name, shapes[name], shape)


def _check_bias(gguf: GGUFFile, shapes: dict[str, Shape], name: str, shape: Shape) -> None:
    """A matrix's bias has a value per row; of experts' matrices each, and a norm's per value."""
    weight = shapes.get(name.removesuffix(".bias") + ".weight")
    if weight is None:
        return
    expected = weight[1:] if len(weight) > 1 else weight
    if shape != expected and prod(shape) != prod(weight):
        raise _wrong(gguf, name, shape, expected)


def _check_layer(gguf: GGUFFile, h: Hyperparameters, shapes: dict[str, Shape], b: str) -> None:
    for norm in STREAM_NORMS:
        shape = shapes.get(f"{b}{norm}.weight")
        if shape is not None and shape != (h.n_embd,):
            raise _wrong(gguf, f"{b}{norm}.weight", shape, (h.n_embd,))
    for norm in ("attn_q_norm", "attn_k_norm"):
        shape = shapes.get(f"{b}{norm}.weight")
        if shape is not None and len(shape) == 1 and not h.mla_latent and shape[0] % h.head:
            raise _wrong(gguf, f"{b}{norm}.weight", shape, f"a multiple of {h.head}")
    gate, up, down = (shapes.get(f"{b}ffn_{name}.weight") for name in ("gate", "up", "down"))
    if gate and up and down and down[0] != up[1]:
        raise _wrong(gguf, f"{b}ffn_down.weight", down, (up[1], down[1]))
