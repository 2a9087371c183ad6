"""A model's weights on the device: each layer's matrices packed, norms and biases as floats.

All memory is allocated first (``allocate_weights``), so that launches can be recorded, and
their programs built, while the matrices are packed (``pack_weights``): one after another, so
that no second copy of the model is ever in memory. What is in the file decides what a layer
has.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from engine.errors import ModelError
from engine.gguf import GGUFFile
from engine.models.arch import Hyperparameters
from kernels.device import Device
from kernels.norm import NormWeights
from kernels.program import Programs
from kernels.tensor import Tensor, upload
from kernels.weights import (
    ROWS,
    SUPPORTED_TYPES,
    Matrix,
    PackJob,
    RawMatrix,
    place,
    run_job,
)

DROP_BYTES = 32 << 20  # of the file, read before its pages are let go
FLOAT_TYPES: dict[str, type[np.floating[Any]]] = {"F32": np.float32, "F16": np.float16}


@dataclass(frozen=True, slots=True)
class Linear:
    """A matrix with its bias; ``offset`` is where its rows begin in the output."""

    matrix: Matrix
    bias: Tensor | None = None
    offset: int = 0


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """One transformer layer. ``qkv`` has one matrix per tensor type, in Q, K, V order."""

    attention_norm: NormWeights
    qkv: tuple[Linear, ...]
    qk_norms: tuple[Tensor, Tensor] | None
    output: Linear
    post_attention_norm: Tensor | None
    ffn_norm: NormWeights
    gate_up: Linear
    down: Linear
    post_ffn_norm: Tensor | None


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """``output`` is the embedding matrix itself where the file ties them."""

    embedding: Matrix
    layers: tuple[LayerWeights, ...]
    output_norm: NormWeights
    output: Linear
    rope_factors: npt.NDArray[np.float32] | None
    n_bytes: int


def allocate_weights(
    gguf: GGUFFile, hparams: Hyperparameters, device: Device
) -> tuple[ModelWeights, list[PackJob]]:
    """The model's weights with the matrices still empty, and the jobs that fill them.

    Raises ModelError, before anything is allocated, for a tensor that is missing, of a wrong
    shape, or of a type without kernels.
    """
    source = _Source(gguf, device)
    source.check_types()
    _check_ends(source, hparams)
    layers = range(hparams.n_layers)
    for layer in layers:
        _check_layer(source, hparams, layer)
    embedding = source.matrix(["token_embd.weight"])
    output = embedding if not source.has("output.weight") else source.matrix(["output.weight"])
    weights = ModelWeights(
        embedding=embedding,
        layers=tuple(_layer(source, hparams, layer) for layer in layers),
        output_norm=source.norm("output_norm", hparams),
        output=Linear(output, source.vector("output.bias")),
        rope_factors=source.floats("rope_freqs.weight"),
        n_bytes=gguf.n_bytes,
    )
    return weights, source.jobs


def pack_weights(
    gguf: GGUFFile,
    jobs: Sequence[PackJob],
    device: Device,
    programs: Programs,
    progress: Callable[[float], None],
) -> None:
    """Fill the matrices; ``progress`` gets the share that is done, 0 to 1."""
    total, done, dropped = sum(job.part.data.nbytes for job in jobs), 0, 0
    for job in jobs:
        run_job(device, programs, job)
        done += job.part.data.nbytes
        if done - dropped >= DROP_BYTES:
            gguf.drop_pages()
            dropped = done
        progress(done / total)


class _Source:
    """The file's tensors by name, and the packing jobs of those that were asked for."""

    def __init__(self, gguf: GGUFFile, device: Device) -> None:
        self._gguf = gguf
        self._device = device
        self.jobs: list[PackJob] = []

    def has(self, name: str) -> bool:
        return name in self._gguf.tensors

    def check_types(self) -> None:
        for info in self._gguf.tensors.values():
            if info.type.name not in SUPPORTED_TYPES:
                raise ModelError(
                    f"{self._gguf.path}: tensor {info.name} is of type {info.type.name}, which "
                    f"has no kernels yet; supported: {', '.join(SUPPORTED_TYPES)}"
                )

    def check_shape(self, name: str, shape: Sequence[int]) -> None:
        """``shape`` in the file's order: columns first."""
        info = self._gguf.tensors.get(name)
        if info is None:
            raise ModelError(f"{self._gguf.path}: tensor {name} is missing")
        if info.shape != tuple(shape):
            raise ModelError(
                f"{self._gguf.path}: tensor {name} has shape {info.shape}, not {tuple(shape)}"
            )

    def check_optional(self, shapes: Mapping[str, Sequence[int]]) -> None:
        """The shapes of those of these tensors that the file has."""
        for name, shape in shapes.items():
            if self.has(name):
                self.check_shape(name, shape)

    def raw(self, name: str) -> RawMatrix:
        info = self._gguf.tensors[name]
        n_cols, n_rows = info.shape
        return RawMatrix(self._gguf.data(name), info.type, n_rows, n_cols)

    def matrix(self, names: Sequence[str], *, paired: bool = False) -> Matrix:
        matrix, jobs = place(self._device, [self.raw(name) for name in names], paired=paired)
        self.jobs += jobs
        return matrix

    def floats(self, name: str) -> npt.NDArray[np.float32] | None:
        """A float tensor as a flat array, or None if the file has none of that name."""
        if not self.has(name):
            return None
        kind = self._gguf.tensors[name].type.name
        if kind not in FLOAT_TYPES:
            raise ModelError(f"{self._gguf.path}: tensor {name} is of type {kind}, not a float")
        return self._gguf.data(name).view(FLOAT_TYPES[kind]).astype(np.float32)

    def vector(self, name: str) -> Tensor | None:
        array = self.floats(name)
        return None if array is None else upload(self._device, array)

    def upload(self, array: npt.NDArray[np.float32]) -> Tensor:
        return upload(self._device, array)

    def norm(self, name: str, hparams: Hyperparameters) -> NormWeights:
        return NormWeights(
            self.vector(f"{name}.weight"), hparams.eps, self.vector(f"{name}.bias"),
            hparams.arch.layer_norm,
        )  # fmt: skip


def _check_ends(source: _Source, h: Hyperparameters) -> None:
    """What comes before the layers and after them."""
    source.check_shape("token_embd.weight", (h.n_embd, h.n_vocab))
    source.check_shape("output_norm.weight", (h.n_embd,))
    source.check_optional({
        "output_norm.bias": (h.n_embd,), "output.weight": (h.n_embd, h.n_vocab),
        "output.bias": (h.n_vocab,), "rope_freqs.weight": (h.n_rot // 2,),
    })  # fmt: skip


def _check_layer(source: _Source, h: Hyperparameters, layer: int) -> None:
    b = f"blk.{layer}."
    q_rows, k_rows = h.n_heads[layer] * h.head, h.n_kv[layer] * h.head
    v_rows, o_cols = h.n_kv[layer] * h.head_v, h.n_heads[layer] * h.head_v
    source.check_shape(f"{b}attn_q.weight", (h.n_embd, q_rows))
    source.check_shape(f"{b}attn_k.weight", (h.n_embd, k_rows))
    source.check_shape(f"{b}attn_v.weight", (h.n_embd, v_rows))
    source.check_shape(f"{b}attn_output.weight", (o_cols, h.n_embd))
    for name in ("ffn_gate", "ffn_up"):
        source.check_shape(f"{b}{name}.weight", (h.n_embd, h.n_ff[layer]))
    source.check_shape(f"{b}ffn_down.weight", (h.n_ff[layer], h.n_embd))
    for name in ("attn_norm", "ffn_norm"):
        source.check_shape(f"{b}{name}.weight", (h.n_embd,))
    lengths = {
        "attn_norm.bias": h.n_embd, "ffn_norm.bias": h.n_embd, "attn_q.bias": q_rows,
        "attn_k.bias": k_rows, "attn_v.bias": v_rows, "attn_output.bias": h.n_embd,
        "attn_q_norm.weight": h.head, "attn_k_norm.weight": h.head,
        "post_attention_norm.weight": h.n_embd, "ffn_gate.bias": h.n_ff[layer],
        "ffn_up.bias": h.n_ff[layer], "ffn_down.bias": h.n_embd,
        "post_ffw_norm.weight": h.n_embd,
    }  # fmt: skip
    source.check_optional({f"{b}{name}": (length,) for name, length in lengths.items()})


def _layer(source: _Source, h: Hyperparameters, layer: int) -> LayerWeights:
    b = f"blk.{layer}."
    q_norm, k_norm = (
        source.vector(f"{b}attn_q_norm.weight"),
        source.vector(f"{b}attn_k_norm.weight"),
    )
    return LayerWeights(
        attention_norm=source.norm(f"{b}attn_norm", h),
        qkv=_stacked(source, [f"{b}attn_{x}" for x in "qkv"]),
        qk_norms=(q_norm, k_norm) if q_norm and k_norm else None,
        output=_linear(source, f"{b}attn_output"),
        post_attention_norm=source.vector(f"{b}post_attention_norm.weight"),
        ffn_norm=source.norm(f"{b}ffn_norm", h),
        gate_up=_gate_up(source, f"{b}ffn_gate", f"{b}ffn_up"),
        down=_linear(source, f"{b}ffn_down"),
        post_ffn_norm=source.vector(f"{b}post_ffw_norm.weight"),
    )


def _linear(source: _Source, name: str) -> Linear:
    return Linear(source.matrix([f"{name}.weight"]), source.vector(f"{name}.bias"))


def _biases(source: _Source, names: Sequence[str]) -> list[npt.NDArray[np.float32]] | None:
    """The biases of matrices, zeros where one has none; None if none has one."""
    found = [source.floats(f"{name}.bias") for name in names]
    if all(bias is None for bias in found):
        return None
    sizes = [source.raw(f"{name}.weight").n_rows for name in names]
    return [
        np.zeros(size, np.float32) if bias is None else bias
        for bias, size in zip(found, sizes, strict=True)
    ]


def _stacked(source: _Source, names: Sequence[str]) -> tuple[Linear, ...]:
    """Matrices whose outputs lie side by side; neighbours of one type become one matrix."""
    runs: list[list[str]] = []
    for name in names:
        raw = source.raw(f"{name}.weight")
        last = source.raw(f"{runs[-1][-1]}.weight") if runs else None
        if last is not None and last.type == raw.type and last.n_rows % ROWS == 0:
            runs[-1].append(name)
        else:
            runs.append([name])
    linears, offset = [], 0
    for run in runs:
        matrix = source.matrix([f"{name}.weight" for name in run])
        biases = _biases(source, run)
        bias = None if biases is None else source.upload(np.concatenate(biases))
        linears.append(Linear(matrix, bias, offset))
        offset += matrix.n_rows
    return tuple(linears)


def _gate_up(source: _Source, gate: str, up: str) -> Linear:
    """Gate and up paired; ModelError if their types differ."""
    raw = [source.raw(f"{name}.weight") for name in (gate, up)]
    if raw[0].type != raw[1].type:
        raise ModelError(
            f"{gate}.weight is {raw[0].type.name} and {up}.weight {raw[1].type.name}: "
            "different types are not supported yet"
        )
    matrix = source.matrix([f"{gate}.weight", f"{up}.weight"], paired=True)
    biases = _biases(source, [gate, up])
    return Linear(matrix, None if biases is None else source.upload(_paired(biases)))


def _paired(biases: Sequence[npt.NDArray[np.float32]]) -> npt.NDArray[np.float32]:
    """Biases in the order of a paired matrix: groups of 16 of the one, then of the other."""
    n_groups = -(-len(biases[0]) // (2 * ROWS)) * 2
    result = np.zeros((n_groups, 2, ROWS), np.float32)
    for i, bias in enumerate(biases):
        padded = np.zeros(n_groups * ROWS, np.float32)
        padded[: len(bias)] = bias
        result[:, i] = padded.reshape(n_groups, ROWS)
    return result.reshape(-1)
