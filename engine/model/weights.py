"""A model's weights on the device: what each layer has, as the file shows it.

All memory is allocated first, so that launches can be recorded, and their programs built, while
the matrices are packed (packing.py).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters, LayerForm
from gguf_serve.engine.architecture.drafts import TARGET_EMBEDDING
from gguf_serve.engine.architecture.keys import as_read
from gguf_serve.engine.architecture.shapes import check_tensors
from gguf_serve.engine.architecture.stacks import as_layers
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.layers.attention.attention import load_attention
from gguf_serve.engine.layers.attention.compressed import load_compressed
from gguf_serve.engine.layers.attention.cross_attention import Handover, load_cross_attention
from gguf_serve.engine.layers.attention.mla import load_mla
from gguf_serve.engine.layers.convolved import load_convolved_layer, load_first_convolution
from gguf_serve.engine.layers.ends import (
    LOWEST_LOGIT,
    Embedding,
    Head,
    load_per_layer_embedding,
    load_per_layer_gate,
)
from gguf_serve.engine.layers.feed_forward.channel_mix import load_channel_mix
from gguf_serve.engine.layers.feed_forward.ffn import load_bare_ffn, load_ffn
from gguf_serve.engine.layers.feed_forward.moe import (
    ParallelExperts,
    load_moe,
    load_parallel_experts,
)
from gguf_serve.engine.layers.hyper import HyperWeights
from gguf_serve.engine.layers.nextn import (
    StateFusion,
    load_draft_attention,
    load_fusion,
    load_state_fusion,
)
from gguf_serve.engine.layers.rank import RankOfMean, load_rank
from gguf_serve.engine.layers.recurrent.delta_net import load_delta_net
from gguf_serve.engine.layers.recurrent.kimi_delta import load_kimi_delta
from gguf_serve.engine.layers.recurrent.lightning import load_lightning
from gguf_serve.engine.layers.recurrent.mamba import load_mamba
from gguf_serve.engine.layers.recurrent.rwkv6 import load_rwkv6
from gguf_serve.engine.layers.recurrent.rwkv7 import load_rwkv7
from gguf_serve.engine.layers.recurrent.short_conv import load_short_conv
from gguf_serve.engine.layers.residuals import Residuals, load_residuals
from gguf_serve.engine.layers.sublayer import (
    Deepstack,
    Direction,
    Entry,
    NormsAfter,
    Scaled,
    Skip,
    Sublayer,
    SublayerWeights,
    Together,
)
from gguf_serve.engine.model.placement import Placement
from gguf_serve.engine.recording.adapters import Adapter, check_used, switched_adapters
from gguf_serve.engine.recording.low_rank import Reservation
from gguf_serve.engine.recording.tensors import Linear, Places, TensorSource
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.quantization.weights import Matrix, PackJob
from gguf_serve.kernels.rows.norm import NormWeights

EMBEDDING = "token_embd.weight"
EMBEDDINGS = (
    TARGET_EMBEDDING,
    EMBEDDING,
    "output.weight",
)  # of which the first that there is counts
IMAGE_IDS = slice(4, 8196)  # Chameleon's


class Layer(Struct, frozen=True):
    """A layer's entries in their order (engine/layers/sublayer.py). ``part``: of the model, which
    has its mixers and its share of the KV cache."""

    part: int
    entries: tuple[Entry, ...]


class ModelWeights(Struct, frozen=True):
    """A model as a list: the embedding, what is done with it before the first layer, the layers,
    what is done after the last one, the head."""

    placement: Placement
    embedding: Embedding
    before: tuple[Entry, ...]
    layers: tuple[Layer, ...]
    after: tuple[Entry, ...]
    head: Head
    handover: StateFusion | None  # what makes the states for a draft
    state_width: int  # of what goes from layer to layer
    rope_factors: npt.NDArray[np.float32] | None
    rope_factors_long: npt.NDArray[np.float32] | None
    n_bytes: int
    n_adapters: int
    reservations: Sequence[Sequence[Reservation]]  # for adapters that come later, by device
    placed: Sequence[Mapping[Places, Matrix]]  # by device, while the file is open


class Additions(NamedTuple):
    """What is computed beside the file's matrices: LoRA adapters, control vectors by layer, states
    for the draft of an open file; ``lent``: matrices that are there, by device, see
    TensorSource."""

    adapters: Sequence[Adapter] = ()
    directions: Mapping[int, npt.NDArray[np.float32]] = {}
    draft: GGUFFile | None = None
    lent: Sequence[Mapping[Places, Matrix]] = ()


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
    adapters, directions, draft, lent = additions
    gguf = as_layers(gguf, hparams.arch)
    check_tensors(gguf, hparams)
    if hparams.switch is not None:
        own = switched_adapters(gguf, hparams.n_layers, hparams.switch.n_adapters)
        adapters = (*own, *adapters)
    sources = [
        TensorSource(gguf, device, hparams.arch.unused, adapters, placed)
        for device, placed in zip(devices, lent or [{}] * len(devices), strict=True)
    ]
    source, last = sources[placement.embedding], sources[placement.output]
    source.check_types()
    read = next((name for name in EMBEDDINGS if source.has(name)), EMBEDDING)
    matrix = source.matrix(read)
    head_at = len(placement.parts) - 1
    per_layer = load_per_layer_embedding(source, hparams, 0)
    convolution, fusion = load_first_convolution(source, hparams), load_fusion(source, hparams, 0)
    handover = None
    if draft is not None:
        other = TensorSource(draft, devices[placement.output])
        handover, last.jobs[:0] = load_state_fusion(other, draft, hparams, head_at), other.jobs
    residuals = load_residuals(last, as_read(gguf, hparams.arch.all_keys), hparams, head_at)
    n_streams = residuals.count if isinstance(residuals, HyperWeights) else 1
    layers = _layers(sources, hparams, placement)
    tied = None if last is not source or read == TARGET_EMBEDDING else matrix
    if residuals is not None:
        layers = tuple(_tied(layer, residuals) for layer in layers)
        if directions:
            name = hparams.arch.name
            raise ModelError(f"control vectors are not supported in the several streams of {name}")
    else:
        layers = tuple(
            Layer(layer.part, (*layer.entries, *entries))
            for i, layer in enumerate(layers)
            for entries in [_additions(sources, hparams, placement, i, matrix, directions)]
        )
    weights = ModelWeights(
        placement=placement,
        embedding=_embedding(source, hparams, matrix),
        before=(
            *(() if convolution is None else (convolution,)),
            *(() if fusion is None else (fusion,)),
            *(() if per_layer is None else (per_layer,)),
            *(() if residuals is None or fusion is not None else (residuals.begin,)),
        ),
        layers=layers,
        after=() if residuals is None else (residuals.finish,),
        head=Head(
            head_at, _output_norm(last, hparams),
            _output(last, hparams, tied) if hparams.generates else None,
            load_rank(last, hparams),
            RankOfMean(last, hparams) or None if hparams.rank_pooling == "mean" else None,
            _dense(last, hparams),
        ),
        rope_factors=_first(source, "rope_freqs.weight", "rope_factors_short.weight"),
        rope_factors_long=_first(source, "rope_freqs.weight", "rope_factors_long.weight"),
        handover=handover,
        state_width=hparams.state_size * n_streams,
        n_bytes=gguf.n_bytes,
        n_adapters=len(adapters),
        reservations=[source.reservations for source in sources],
        placed=[source.placed for source in sources],
    )  # fmt: skip
    check_used(adapters, set().union(*(source.adapted for source in sources)))
    return weights, [source.jobs for source in sources]


def _embedding(source: TensorSource, h: Hyperparameters, matrix: Matrix) -> Embedding:
    positions, types = "position_embd.weight", "token_types.weight"
    return Embedding(
        0, matrix, source.embedding_updates(EMBEDDING),
        positions=source.matrix(positions) if source.has(positions) else None,
        token_types=source.matrix(types) if source.has(types) else None,
        norm=_embedding_norm(source, h),
    )  # fmt: skip


def _additions(
    sources: Sequence[TensorSource],
    h: Hyperparameters,
    placement: Placement,
    layer: int,
    embedding: Matrix,
    directions: Mapping[int, npt.NDArray[np.float32]],
) -> list[Entry]:
    """What is done with what a layer yields: a later part of an encoder's embeddings is added, and
    the tokens' by a factor, or it is scaled; a control vector is added."""
    part = 2 * layer + 2
    source = sources[placement.parts[part]]
    found: list[Entry] = []
    if layer < len(h.deepstack) and h.deepstack[layer]:
        found.append(Deepstack(part, embedding, h.deepstack[layer] * h.n_embd))
    scale = source.floats(f"blk.{layer}.layer_output_scale.weight")
    if scale is not None:
        entry = Scaled if "scaled_layers" in h.arch.quirks else Skip
        found.append(entry(part, float(scale[0])))
    if h.rescale_every and (layer + 1) % h.rescale_every == 0:
        found.append(Scaled(part, 0.5))
    if layer in directions:
        found.append(Direction(part, source.float_matrix(directions[layer][None])))
    return found


def _tied(layer: Layer, residuals: Residuals) -> Layer:
    """The layer with its mixer and its FFN between the model's streams."""
    sublayers = [entry for entry in layer.entries if isinstance(entry, Sublayer)]
    return Layer(layer.part, tuple(residuals.tied(n, each) for n, each in enumerate(sublayers)))


def _output(source: TensorSource, h: Hyperparameters, embedding: Matrix | None) -> Linear:
    """``embedding``: the matrix that the file ties to it, if that is on the same device."""
    if source.has("output.weight"):
        output = source.linear("output", h.n_embd)
    else:
        matrix = source.matrix(EMBEDDING) if embedding is None else embedding
        output = Linear(matrix, source.vector("output.bias"))
    if "silent_images" in h.arch.quirks:
        bias = np.zeros(h.n_vocab, np.float32)
        bias[IMAGE_IDS] = LOWEST_LOGIT
        output = replace(output, bias=source.upload(bias))
    n_silent = h.n_vocab - output.matrix.n_rows  # before the last ids, which have rows
    if n_silent < 0:
        raise ModelError(f"output.weight has {output.matrix.n_rows} rows for {h.n_vocab} tokens")
    if h.n_vocab_output and not n_silent:
        output = replace(output, matrix=output.matrix.first_rows(h.n_vocab_output))
    return replace(output, offset=n_silent)


def _dense(source: TensorSource, h: Hyperparameters) -> tuple[Linear, ...]:
    names = [name for name in h.arch.projections if source.has(f"{name}.weight")]
    found = tuple(source.linear(name) for name in names)
    if found and (found[0].matrix.n_cols, found[-1].matrix.n_rows) != (h.n_embd, h.state_size):
        raise ModelError(
            f"{' and '.join(names)} go from {found[0].matrix.n_cols} values to "
            f"{found[-1].matrix.n_rows}, expected {h.n_embd} and {h.state_size}"
        )
    return found


def _output_norm(source: TensorSource, h: Hyperparameters) -> NormWeights:
    if h.arch.layers == "norms_after" or h.cycles:  # the last layer has normalized the stream
        return NormWeights(None, h.eps)
    norm = _norm(source, h, "output_norm", "enc.output_norm", "token_embd_norm")
    other = h.takes_states and "layer_norm_after_heads" in h.arch.quirks
    return replace(norm, layer=True) if other else norm


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
    own = h.arch.layers == "norms_after" or source.has("output_norm.weight")
    if own and h.arch.embedding_norm and source.has("token_embd_norm.weight"):
        return _norm(source, h, "token_embd_norm")
    return (
        NormWeights(None, h.eps, weightless=True) if "normed_embedding" in h.arch.quirks else None
    )


def _layers(
    sources: Sequence[TensorSource], h: Hyperparameters, placement: Placement
) -> tuple[Layer, ...]:
    if h.cycles is None:
        layers = [_layer(sources, h, i, placement) for i in range(h.n_layers)]
        if h.n_encoder:
            layer = layers[h.n_encoder]
            norm = _norm(sources[placement.mixers[h.n_encoder]], h, "enc.output_norm")
            entries: tuple[Entry, ...] = (Handover(layer.part, norm), *layer.entries)
            layers[h.n_encoder] = Layer(layer.part, entries)
        return tuple(layers)
    per_stack, n_low, _ = h.cycles  # the file has each of the two stacks once
    low, high = (
        [_layer(sources, h, i, placement) for i in range(first, first + per_stack)]
        for first in (0, per_stack)
    )
    runs = (low * n_low + high) * (h.n_layers // (per_stack * (n_low + 1)))
    return tuple(_run(layer, i) for i, layer in enumerate(runs))


def _run(layer: Layer, number: int) -> Layer:
    """One run through a layer of the file, with keys and values of its own."""
    sublayers = (entry for entry in layer.entries if isinstance(entry, Sublayer))
    return Layer(layer.part, tuple(replace(entry, layer=number) for entry in sublayers))


def _layer(
    sources: Sequence[TensorSource], h: Hyperparameters, layer: int, placement: Placement
) -> Layer:
    """The layer's sublayers, and its norms in their places.

    A norm called "post attention" without one called "ffn_norm" is the FFN's own, unless there
    is none before attention either. An FFN without a norm of its own reads what attention reads;
    on another device it has the same norm again. Attention is where the K and V are that it reads.
    """
    b, kv_layer = f"blk.{layer}.", h.kv_layers[layer]
    if kv_layer >= h.n_layers:  # another model's
        kv_layer = layer
    mixer_at, ffn_at = placement.mixers[kv_layer], placement.ffns[layer]
    mixer_part, ffn_part = 2 * kv_layer + 1, 2 * layer + 2
    source, elsewhere = sources[mixer_at], sources[ffn_at]
    if h.arch.layers != "norms_before":
        return _FORMS[h.arch.layers](source, elsewhere, h, layer)
    mixers = _mixers(source, h, layer)
    ffn = _ffn(elsewhere, h, layer)
    before, own = f"{b}attn_norm", f"{b}ffn_norm"
    if source.has(f"{b}channel_mix_key.weight"):
        own = f"{b}attn_norm_2"
    after = [f"{b}post_attention_norm", f"{b}attn_output_norm"]
    if source.has(f"{before}.weight") and not source.has(f"{own}.weight"):
        own, after = next((name for name in after if source.has(f"{name}.weight")), own), []
    has_own = source.has(f"{own}.weight") or not source.has(f"{before}.weight")
    second = own != f"{b}attn_norm_2" and "lightning_attention" not in h.arch.quirks
    mixing, found = list[Sublayer](), list[Sublayer]()
    for i, mixer in enumerate(mixers):  # the second reads what the first read
        first = [f"{b}attn_norm_2", before] if second else [before]
        norm = _norm(source, h, *first) if i == 0 else None
        mixing.append(Sublayer(mixer_part, layer, norm, mixer, _post_norm(source, h, after)))
    cross = load_cross_attention(source, h, layer)
    if cross is not None:
        norm = _norm(source, h, f"{b}cross_attn_norm")
        found.append(Sublayer(mixer_part, layer, norm, cross, None))
    if ffn is not None:
        second = second and source.has(f"{b}attn_norm_2.weight")
        second = second or not mixers or ffn_at != mixer_at
        names = [own] if has_own else [before] if second else []
        post = _post_norm(elsewhere, h, [f"{b}post_ffw_norm", f"{b}layer_output_norm"])
        own_norm = _norm(elsewhere, h, *names) if names else None
        if isinstance(ffn, ParallelExperts):  # it reads the stream, and has the norm itself
            own_norm = None
        found.append(Sublayer(ffn_part, layer, own_norm, ffn, post))
    part, gate = 2 * layer + 1, load_per_layer_gate(elsewhere, h, layer)
    if gate is not None:
        found.append(Sublayer(ffn_part, layer, None, *gate))
    if not has_own or h.parallel:
        return Layer(part, (Together((*mixing, *found)),))
    return Layer(part, (*([Together(tuple(mixing))] if len(mixing) > 1 else mixing), *found))


def _post_norm(source: TensorSource, h: Hyperparameters, names: list[str]) -> NormWeights | None:
    weight = source.vector(*(f"{name}.weight" for name in names))
    return None if weight is None else NormWeights(weight, h.post_eps)


def _layer_with_norms_after(
    source: TensorSource, elsewhere: TensorSource, h: Hyperparameters, layer: int
) -> Layer:
    b, part = f"blk.{layer}.", 2 * layer + 1
    mixer, ffn = _attention_and_ffn(source, elsewhere, h, layer)
    first, second = _norm(source, h, f"{b}attn_output_norm"), f"{b}attn_norm_2"
    norms = [first, _norm(source, h, second)] if source.has(f"{second}.weight") else [first]
    return Layer(part, (
        NormsAfter(Sublayer(part, layer, None, mixer, None), *norms[::-1]),
        NormsAfter(
            Sublayer(part + 1, layer, None, ffn, None), _norm(elsewhere, h, f"{b}layer_output_norm")
        ),
    ))  # fmt: skip


def _layer_of_normed_outputs(
    source: TensorSource, elsewhere: TensorSource, h: Hyperparameters, layer: int
) -> Layer:
    b, part = f"blk.{layer}.", 2 * layer + 1
    mixer, ffn = _attention_and_ffn(source, elsewhere, h, layer)
    after = _norm(source, h, f"{b}attn_norm"), _norm(elsewhere, h, f"{b}ffn_norm")
    return Layer(part, (
        Sublayer(part, layer, None, mixer, after[0]), Sublayer(part + 1, layer, None, ffn, after[1])
    ))  # fmt: skip


def _drafting_layer(
    source: TensorSource, elsewhere: TensorSource, h: Hyperparameters, layer: int
) -> Layer:
    part = 2 * layer + 1
    mixer, ffn = _attention_and_ffn(source, elsewhere, h, layer)
    own_norm = _norm(elsewhere, h, f"blk.{layer}.ffn_norm")
    return Layer(part, (
        load_draft_attention(source, h, part, mixer), Sublayer(part + 1, layer, own_norm, ffn, None)
    ))  # fmt: skip


def _convolved_layer(
    source: TensorSource, elsewhere: TensorSource, h: Hyperparameters, layer: int
) -> Layer:
    return Layer(2 * layer + 1, load_convolved_layer(source, h, layer))


# How layers are read that are not as most are, see LayerForm.
_FORMS: dict[LayerForm, Callable[[TensorSource, TensorSource, Hyperparameters, int], Layer]] = {
    "norms_after": _layer_with_norms_after,
    "normed_outputs": _layer_of_normed_outputs,
    "drafting": _drafting_layer,
    "convolved": _convolved_layer,
}


def _attention_and_ffn(
    source: TensorSource, elsewhere: TensorSource, h: Hyperparameters, layer: int
) -> tuple[SublayerWeights, SublayerWeights]:
    ffn = _ffn(elsewhere, h, layer)
    if ffn is None:
        raise ModelError(f"tensor blk.{layer}.ffn_up.weight is missing")
    return load_attention(source, h, layer), ffn


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
    if source.has(f"{b}time_mix_w0.weight"):
        found.append(load_rwkv7(source, h, layer))
    elif source.has(f"{b}time_mix_decay.weight"):
        found.append(load_rwkv6(source, h, layer))
    if source.has(f"{b}shortconv.conv.weight"):
        found.append(load_short_conv(source, layer))
    return found


def _ffn(source: TensorSource, h: Hyperparameters, layer: int) -> SublayerWeights | None:
    if source.has(f"blk.{layer}.pre_ffw_norm_2.weight"):
        return load_parallel_experts(source, h, layer)
    if source.has(f"blk.{layer}.ffn_gate_inp.weight"):
        bare = "experts_unused" in h.arch.quirks
        return load_bare_ffn(source, h) if bare else load_moe(source, h, layer)
    if source.has(f"blk.{layer}.ffn_up.weight"):
        return load_ffn(source, h, layer)
    if source.has(f"blk.{layer}.channel_mix_key.weight"):
        return load_channel_mix(source, h, layer)
    return None
