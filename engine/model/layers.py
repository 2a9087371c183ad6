"""The layers of a model: which norms and sublayers each has, as the names of its tensors show."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters, LayerForm
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.layers.attention.attention import load_attention
from gguf_serve.engine.layers.attention.compressed import load_compressed
from gguf_serve.engine.layers.attention.cross_attention import Handover, load_cross_attention
from gguf_serve.engine.layers.attention.mla import load_mla
from gguf_serve.engine.layers.between_convolutions import between_convolutions
from gguf_serve.engine.layers.convolved import load_convolved_layer
from gguf_serve.engine.layers.ends import load_per_layer_gate
from gguf_serve.engine.layers.feed_forward.channel_mix import load_channel_mix
from gguf_serve.engine.layers.feed_forward.ffn import load_bare_ffn, load_ffn
from gguf_serve.engine.layers.feed_forward.moe import (
    ParallelExperts,
    load_moe,
    load_parallel_experts,
)
from gguf_serve.engine.layers.nextn import load_draft_attention
from gguf_serve.engine.layers.recurrent.delta_net import load_delta_net
from gguf_serve.engine.layers.recurrent.kimi_delta import load_kimi_delta
from gguf_serve.engine.layers.recurrent.lightning import load_lightning
from gguf_serve.engine.layers.recurrent.mamba import load_mamba
from gguf_serve.engine.layers.recurrent.rwkv6 import load_rwkv6
from gguf_serve.engine.layers.recurrent.rwkv7 import load_rwkv7
from gguf_serve.engine.layers.recurrent.short_conv import load_short_conv
from gguf_serve.engine.layers.sublayer import Entry, NormsAfter, Sublayer, SublayerWeights, Together
from gguf_serve.engine.model.placement import Placement
from gguf_serve.engine.recording.tensors import TensorSource
from gguf_serve.kernels.rows.norm import NormWeights


class Layer(Struct, frozen=True):
    """A layer's entries in their order (engine/layers/sublayer.py). ``part``: of the model, which
    has its mixers and its share of the KV cache."""

    part: int
    entries: tuple[Entry, ...]


def load_layers(
    sources: Sequence[TensorSource], h: Hyperparameters, placement: Placement
) -> tuple[Layer, ...]:
    """The layers in the order in which they are computed. ModelError for a tensor that is missing
    or of a wrong shape."""
    if h.cycles is None:
        layers = [_layer(sources, h, i, placement) for i in range(h.n_layers)]
        if h.n_encoder:
            layer = layers[h.n_encoder]
            norm = load_norm(sources[placement.mixers[h.n_encoder]], h, "enc.output_norm")
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
        norm = load_norm(source, h, *first) if i == 0 else None
        mixing.append(Sublayer(mixer_part, layer, norm, mixer, _post_norm(source, h, after)))
    cross = load_cross_attention(source, h, layer)
    if cross is not None:
        norm = load_norm(source, h, f"{b}cross_attn_norm")
        found.append(Sublayer(mixer_part, layer, norm, cross, None))
    if ffn is not None:
        second = second and source.has(f"{b}attn_norm_2.weight")
        second = second or not mixers or ffn_at != mixer_at
        names = [own] if has_own else [before] if second else []
        post = _post_norm(elsewhere, h, [f"{b}post_ffw_norm", f"{b}layer_output_norm"])
        own_norm = load_norm(elsewhere, h, *names) if names else None
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
    first, second = load_norm(source, h, f"{b}attn_output_norm"), f"{b}attn_norm_2"
    norms = [first, load_norm(source, h, second)] if source.has(f"{second}.weight") else [first]
    return Layer(part, (
        NormsAfter(Sublayer(part, layer, None, mixer, None), *norms[::-1]),
        NormsAfter(
            Sublayer(part + 1, layer, None, ffn, None),
            load_norm(elsewhere, h, f"{b}layer_output_norm"),
        ),
    ))  # fmt: skip


def _layer_of_normed_outputs(
    source: TensorSource, elsewhere: TensorSource, h: Hyperparameters, layer: int
) -> Layer:
    b, part = f"blk.{layer}.", 2 * layer + 1
    mixer, ffn = _attention_and_ffn(source, elsewhere, h, layer)
    after = load_norm(source, h, f"{b}attn_norm"), load_norm(elsewhere, h, f"{b}ffn_norm")
    return Layer(part, (
        Sublayer(part, layer, None, mixer, after[0]), Sublayer(part + 1, layer, None, ffn, after[1])
    ))  # fmt: skip


def _drafting_layer(
    source: TensorSource, elsewhere: TensorSource, h: Hyperparameters, layer: int
) -> Layer:
    part = 2 * layer + 1
    mixer, ffn = _attention_and_ffn(source, elsewhere, h, layer)
    own_norm = load_norm(elsewhere, h, f"blk.{layer}.ffn_norm")
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
        found.append(between_convolutions(source, h, f"{b}attn_conv", load(source, h, layer)))
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
        inner = load_ffn(source, h, layer)
        return between_convolutions(source, h, f"blk.{layer}.ffn_conv", inner)
    if source.has(f"blk.{layer}.channel_mix_key.weight"):
        return load_channel_mix(source, h, layer)
    return None


def load_norm(source: TensorSource, h: Hyperparameters, *names: str) -> NormWeights:
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
