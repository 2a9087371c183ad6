"""A draft for another model, in a file of its own (EAGLE-3, https://arxiv.org/abs/2503.01840).

It reads beside each token a state that is made of the inputs of some of its target's layers
(layers/nextn.py, StateFusion), and then its own. What it has no embedding or output matrix for,
the target has.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.architecture.hyperparameters import read_hyperparameters
from gguf_serve.engine.architecture.table import DRAFTS
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile

IDS = "d2t"
LENT = ("token_embd.weight", "output.weight")  # by the target, where the draft has none
OF_TARGET = (IDS, "fc.weight", "enc.output_norm.weight")  # not the draft's own


@dataclass(frozen=True)
class Draft:
    """A draft as a model. ``ids``: its tokens by the target's ids, int64 [n_vocab]; None: the
    same."""

    gguf: GGUFFile
    hparams: Hyperparameters
    ids: npt.NDArray[np.int64] | None


def read_draft(gguf: GGUFFile, target: GGUFFile) -> Draft:
    """A file's draft for a target, for as long as both are open; ModelError for files that do not
    fit, or another architecture."""
    arch = DRAFTS.get(gguf.architecture)
    if arch is None:
        raise ModelError(f"{gguf.path}: {gguf.architecture} is not one of {', '.join(DRAFTS)}")
    ids = _ids(gguf)
    own = {name: info for name, info in gguf.tensors.items() if name not in OF_TARGET}
    view = gguf.with_tensors(own).borrowing(target, [name for name in LENT if name not in own])
    h = read_hyperparameters(view, arch)
    return Draft(view, replace(
        h, takes_states=True, n_vocab=h.n_vocab if ids is None else len(ids),
        normed_residual=bool(gguf.metadata.get(gguf.arch_key("norm_before_residual"), False)),
    ), ids)  # fmt: skip


def target_layers(gguf: GGUFFile) -> tuple[int, ...]:
    """The layers of the target whose inputs a draft's states are made of; ModelError for none."""
    key = gguf.arch_key("target_layers")
    value = gguf.metadata.get(key)
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "iu" or not value.size:
        raise ModelError(f"{gguf.path}: {key} is {value}, expected numbers of layers")
    return tuple(int(layer) for layer in value)


def _ids(gguf: GGUFFile) -> npt.NDArray[np.int64] | None:
    info = gguf.tensors.get(IDS)
    if info is None:
        return None
    if info.type.name != "I64":
        raise ModelError(f"{gguf.path}: tensor {IDS} is of type {info.type.name}, expected I64")
    return gguf.data(IDS).view(np.int64)
