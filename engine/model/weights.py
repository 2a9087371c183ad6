"""A model's weights on the device: what each layer has, as the file shows it.

All memory is allocated first, so that launches can be recorded, and their programs built, while
the matrices are packed (packing.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.architecture.shapes import check_tensors
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.layers.attention import load_attention
from gguf_serve.engine.layers.compressed import load_compressed
from gguf_serve.engine.layers.delta_net import load_delta_net
from gguf_serve.engine.layers.ffn import load_bare_ffn, load_ffn
from gguf_serve.engine.layers.kimi_delta import load_kimi_delta
from gguf_serve.engine.layers.lightning import load_lightning
from gguf_serve.engine.layers.mamba import load_mamba
from gguf_serve.engine.layers.mla import load_mla
from gguf_serve.engine.layers.moe import load_moe
from gguf_serve.engine.layers.rank import RankWeights, load_rank
from gguf_serve.engine.layers.residuals import ResidualsWeights, load_residuals
from gguf_serve.engine.layers.short_conv import load_short_conv
from gguf_serve.engine.model.placement import Placement
from gguf_serve.engine.recording.adapters import Adapter, check_used
from gguf_serve.engine.recording.step import SublayerWeights
from gguf_serve.engine.recording.tensors import Linear, LowRankMatrices, TensorSource
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.weights import Matrix, PackJob
from gguf_serve.kernels.rows.norm import NormWeights

EMBEDDING = "token_embd.weight"


@dataclass(frozen=True, slots=True)
class SublayerPlan:
    """A mixer or FFN with the norm before it and the weight of one after it.

    ``norm`` None: it reads what the sublayer before it read. ``after``: norms of the stream
    itself, when the sublayer has been added to it; a second one is of the sum of what the first
    yields and the stream before.
    ``at``: the device's index.
    """

    norm: NormWeights | None
    weights: SublayerWeights
    post_norm: Tensor | None
    at: int
    after: tuple[NormWeights, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerWeights:
    """A layer's sublayers in their order; ``parallel``: they all read the layer's input.

    ``skip`` times the embedding is added to the layer's output. ``mixers_at``: the device that
    has its part of the KV cache.
    """

    sublayers: tuple[SublayerPlan, ...]
    mixers_at: int
    parallel: bool
    skip: float
    direction: Matrix | None = None  # one row, added to what the layer yields, where its FFN is
    ffn_at: int = 0


@dataclass(frozen=True, slots=True)
class ModelWeights:
    """``output`` is the embedding matrix itself where the file ties them and both are on one
    device, None for encoders; of ``token_types`` the first counts, and is added to every
    embedding."""

    embedding: Matrix
    embedding_at: int
    embedding_updates: LowRankMatrices | None  # not of an output that is tied to it
    embedding_norm: NormWeights | None
    positions: Matrix | None  # learned, one row per position
    token_types: Matrix | None
    layers: tuple[LayerWeights, ...]
    output_norm: NormWeights
    output: Linear | None
    rank: RankWeights | None
    residuals: ResidualsWeights | None  # None: the ordinary sum; where the output is
    output_at: int
    rope_factors: npt.NDArray[np.float32] | None
    rope_factors_long: npt.NDArray[np.float32] | None
    n_bytes: int
    n_adapters: int


class Additions(NamedTuple):
    """What is computed beside the file's matrices: LoRA adapters, control vectors by layer."""

    adapters: Sequence[Adapter] = ()
    directions: Mapping[int, npt.NDArray[np.float32]] = {}


NO_ADDITIONS = Additions()


def allocate_weights(
    gguf: GGUFFile,
    hparams: Hyperparameters,
    devices: Sequence[Device],
    placement: Placement,
    additions: Additions = NO_ADDITIONS,
) -> tuple[ModelWeights, list[list[PackJob]]]:
    """The model's weights with the matrices still empty, and the jobs that fill them, by device.

    Raises ModelError for a tensor that is missing, of a wrong shape, or of a type without
    kernels.
    """
    adapters, directions = additions
    sources = [TensorSource(gguf, device, hparams.arch.unused, adapters) for device in devices]
    source, last = sources[placement.embedding], sources[placement.output]
    source.check_types()
    check_tensors(gguf, hparams)
    embedding = source.matrix(EMBEDDING if source.has(EMBEDDING) else "output.weight")
    positions, types = "position_embd.weight", "token_types.weight"
    weights = ModelWeights(
        embedding=embedding,
        embedding_at=placement.embedding,
        embedding_updates=source.embedding_updates(EMBEDDING),
        embedding_norm=_embedding_norm(source, hparams),
        positions=source.matrix(positions) if source.has(positions) else None,
        token_types=source.matrix(types) if source.has(types) else None,
        layers=_directed(_layers(sources, hparams, placement), sources, placement, directions),
        output_norm=_output_norm(last, hparams),
        output=_output(last, None if last is not source else embedding) if hparams.causal else None,
        output_at=placement.output,
        rank=load_rank(last, hparams),
        residuals=load_residuals(last, gguf, hparams),
        rope_factors=_first(source, "rope_freqs.weight", "rope_factors_short.weight"),
        rope_factors_long=_first(source, "rope_freqs.weight", "rope_factors_long.weight"),
        n_bytes=gguf.n_bytes,
        n_adapters=len(adapters),
    )
    check_used(adapters, set().union(*(source.adapted for source in sources)))
    return weights, [source.jobs for source in sources]


def _directed(
    layers: tuple[LayerWeights, ...],
    sources: Sequence[TensorSource],
    placement: Placement,
    directions: Mapping[int, npt.NDArray[np.float32]],
) -> tuple[LayerWeights, ...]:
    """The layers with control vectors, if there are any."""
    result = list(layers)
    for i, vector in directions.items():
        at = placement.ffns[i]
        direction = sources[at].float_matrix(vector[None])
        result[i] = replace(layers[i], direction=direction, ffn_at=at)
    return tuple(result)


def _output(source: TensorSource, embedding: Matrix | None) -> Linear:
    """``embedding``: the matrix that the file ties to it, if that is on the same device."""
    if source.has("output.weight"):
        return source.linear("output")
    matrix = source.matrix(EMBEDDING) if embedding is None else embedding
    return Linear(matrix, source.vector("output.bias"))


def _output_norm(source: TensorSource, h: Hyperparameters) -> NormWeights:
    if h.arch.norms_after or h.cycles:  # the last layer has normalized the stream
        return NormWeights(None, h.eps)
    return _norm(source, h, "output_norm", "token_embd_norm")


def _first(source: TensorSource, *names: str) -> npt.NDArray[np.float32] | None:
    found = (source.floats(name) for name in names)
    return next((array for array in found if array is not None), None)


def _norm(source: TensorSource, h: Hyperparameters, *names: str) -> NormWeights:
    """The norm of the first of these names that the file has, or what the architecture has
    instead: one without weight, or none."""
    name = next((name for name in names if source.has(f"{name}.weight")), None)
    if name is None:
        weightless = "weightless_norms" in h.arch.quirks
        return NormWeights(None, h.eps, layer=h.arch.layer_norm, weightless=weightless)
    source.check_shape(f"{name}.weight", (h.n_embd,))
    return NormWeights(
        source.vector(f"{name}.weight"), h.eps, source.vector(f"{name}.bias"), h.arch.layer_norm
    )


def _embedding_norm(source: TensorSource, h: Hyperparameters) -> NormWeights | None:
    own = h.arch.norms_after or source.has("output_norm.weight")
    if source.has("token_embd_norm.weight") and own:
        return _norm(source, h, "token_embd_norm")
    return (
        NormWeights(None, h.eps, weightless=True) if "normed_embedding" in h.arch.quirks else None
    )


def _layers(
    sources: Sequence[TensorSource], h: Hyperparameters, placement: Placement
) -> tuple[LayerWeights, ...]:
    if h.cycles is None:
        return tuple(_layer(sources, h, i, placement) for i in range(h.n_layers))
    per_stack, n_low, _ = h.cycles  # the file has each of the two stacks once
    low, high = (
        [_layer(sources, h, i, placement) for i in range(first, first + per_stack)]
        for first in (0, per_stack)
    )
    return tuple((low * n_low + high) * (h.n_layers // (per_stack * (n_low + 1))))


def _layer(
    sources: Sequence[TensorSource], h: Hyperparameters, layer: int, placement: Placement
) -> LayerWeights:
    """The layer's sublayers, and its norms in their places.

    A norm called "post attention" without one called "ffn_norm" is the FFN's own, unless there
    is none before attention either. An FFN without a norm of its own reads what attention reads;
    on another device it has the same norm again.
    """
    b = f"blk.{layer}."
    mixer_at, ffn_at = placement.mixers[layer], placement.ffns[layer]
    source, elsewhere = sources[mixer_at], sources[ffn_at]
    if h.arch.norms_after:
        return _layer_with_norms_after(sources, h, layer, placement)
    mixers = _mixers(source, h, layer)
    ffn = _ffn(elsewhere, h, layer)
    before, own = f"{b}attn_norm", f"{b}ffn_norm"
    after = [f"{b}post_attention_norm", f"{b}attn_output_norm"]
    if source.has(f"{before}.weight") and not source.has(f"{own}.weight"):
        own, after = next((name for name in after if source.has(f"{name}.weight")), own), []
    has_own = source.has(f"{own}.weight") or not source.has(f"{before}.weight")
    lightning = "lightning_attention" in h.arch.quirks
    plans = []
    for i, mixer in enumerate(mixers):  # the second reads what the first read
        first = [before] if lightning else [f"{b}attn_norm_2", before]
        norm = _norm(source, h, *first) if i == 0 else None
        post = source.vector(*(f"{name}.weight" for name in after))
        plans.append(SublayerPlan(norm, mixer, post, mixer_at))
    if ffn is not None:
        second = source.has(f"{b}attn_norm_2.weight") and not lightning
        second = second or not mixers or ffn_at != mixer_at
        norms = [own] if has_own else [before] if second else []
        names = f"{b}post_ffw_norm", f"{b}layer_output_norm"
        post = elsewhere.vector(*(f"{name}.weight" for name in names))
        plans.append(
            SublayerPlan(_norm(elsewhere, h, *norms) if norms else None, ffn, post, ffn_at)
        )
    skip = source.floats(f"{b}layer_output_scale.weight")
    return LayerWeights(
        tuple(plans), mixer_at, parallel=not has_own or h.parallel,
        skip=0.0 if skip is None else float(skip[0]),
    )  # fmt: skip


def _layer_with_norms_after(
    sources: Sequence[TensorSource], h: Hyperparameters, layer: int, placement: Placement
) -> LayerWeights:
    mixer_at, ffn_at = placement.mixers[layer], placement.ffns[layer]
    source, elsewhere = sources[mixer_at], sources[ffn_at]
    b, unchanged = f"blk.{layer}.", NormWeights(None, h.eps)
    after = [f"{b}attn_output_norm", *[f"{b}attn_norm_2"] * source.has(f"{b}attn_norm_2.weight")]
    mixer, ffn = load_attention(source, h, layer), _ffn(elsewhere, h, layer)
    attention_norms = tuple(_norm(source, h, name) for name in after)
    if ffn is None:
        raise ModelError(f"tensor {b}ffn_up.weight is missing")
    plans = (
        SublayerPlan(unchanged, mixer, None, mixer_at, attention_norms),
        SublayerPlan(unchanged, ffn, None, ffn_at, (_norm(elsewhere, h, f"{b}layer_output_norm"),)),
    )
    return LayerWeights(plans, mixer_at, parallel=False, skip=0.0)


def _mixers(source: TensorSource, h: Hyperparameters, layer: int) -> list[SublayerWeights]:
    b, found = f"blk.{layer}.", list[SublayerWeights]()
    if h.n_heads[layer]:
        latent, joint = (source.has(f"{b}{x}.weight") for x in ("attn_kv_a_mqa", "attn_kv"))
        load = load_mla if latent else load_compressed if joint else load_attention
        found.append(load(source, h, layer))
    if "lightning_attention" in h.arch.quirks and source.has(f"{b}attn_norm_2.weight"):
        found.append(load_lightning(source, h, layer))
    if source.has(f"{b}ssm_a") and source.has(f"{b}ssm_d"):
        found.append(load_mamba(source, h, layer))
    elif source.has(f"{b}ssm_conv1d_k.weight"):
        found.append(load_kimi_delta(source, h, layer))
    elif source.has(f"{b}ssm_a"):
        found.append(load_delta_net(source, h, layer))
    if source.has(f"{b}shortconv.conv.weight"):
        found.append(load_short_conv(source, layer))
    return found


def _ffn(source: TensorSource, h: Hyperparameters, layer: int) -> SublayerWeights | None:
    if source.has(f"blk.{layer}.ffn_gate_inp.weight"):
        bare = "experts_unused" in h.arch.quirks
        return load_bare_ffn(source, h) if bare else load_moe(source, h, layer)
    if source.has(f"blk.{layer}.ffn_up.weight"):
        return load_ffn(source, h, layer)
    return None
