"""The hyperparameters of a model: from the metadata and the tensors' names of its file."""

from __future__ import annotations

from collections.abc import Iterable
from math import isfinite

import numpy as np
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import (
    Architecture,
    HeadSizes,
    Hyperparameters,
    Positions,
    pooling_of,
)
from gguf_serve.engine.architecture.by_layer import of_layers, per_layer_floats, per_layer_ints
from gguf_serve.engine.architecture.checks import check_hyperparameters
from gguf_serve.engine.architecture.experts import read_experts
from gguf_serve.engine.architecture.keys import as_read
from gguf_serve.engine.architecture.ngrams import read_ngrams
from gguf_serve.engine.architecture.positions import (
    read_positions,
    read_rope_base,
    read_rope_layers,
    read_rope_sections,
    scaling_of,
)
from gguf_serve.engine.architecture.rope import RopeScaling, rescaled
from gguf_serve.engine.architecture.sparse import read_sparsity
from gguf_serve.engine.architecture.stacks import as_layers
from gguf_serve.engine.architecture.switch import read_switch
from gguf_serve.engine.errors import EngineError, ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.options import RopeOptions
from gguf_serve.engine.request import Denoising, Pooling
from gguf_serve.kernels.attention.kv import PAGE
from gguf_serve.kernels.matrix.activate import Xielu

ACTIVATIONS = {
    "gelu": "gelu", "geglu": "gelu", "gelu_pytorch_tanh": "gelu", "silu": "silu", "swish": "silu",
    "swiglu": "silu", "reglu": "relu",
}  # fmt: skip
MOST_LAYERS = 4096
SPARSITY_CUTOFF = 1.6448533535003662  # deviations above the mean, where 5 % of a normal one are


def read_hyperparameters(gguf: GGUFFile, arch: Architecture) -> Hyperparameters:
    """The numbers of a model; ModelError names a key that is missing or out of range."""
    key = gguf.arch_key
    gguf = as_layers(as_read(gguf, arch.all_keys), arch)
    arch = _with_activation(gguf, _with_norm(gguf, arch))
    n_layers = _n_layers(gguf, arch)
    n_embd, n_yielded = _widths(gguf)
    n_heads, n_kv = _heads(gguf, n_layers)
    head, head_v, n_rot = _head_sizes(gguf, head_default := n_embd // max(*n_heads, 1))
    window, windowed = _windows(gguf, arch, n_layers)
    positions = read_positions(gguf, arch, n_layers)
    base = read_rope_base(gguf, head)
    scaling = scaling_of(gguf, arch)
    hparams = Hyperparameters(
        arch=arch,
        n_layers=n_layers,
        n_embd=n_embd,
        n_vocab=_n_vocab(gguf),
        n_ctx_train=gguf.get_int(key("context_length")),
        ngrams=read_ngrams(gguf),
        switch=read_switch(gguf, _n_vocab(gguf)),
        n_positions=_n_positions(gguf),
        n_heads=n_heads,
        n_kv=n_kv,
        kv_layers=_kv_layers(gguf, arch, windowed),
        head=head,
        head_v=head_v,
        n_rot=n_rot // 2 if "half_rope_outside_windows" in arch.quirks else n_rot,
        head_window=_head_window(gguf, HeadSizes(head, head_v, n_rot)),
        eps=_epsilon(gguf, arch),
        positions=positions,
        rope_base=gguf.get_float(key("attention.compress_rope_freq_base"), base),
        rope_base_window=gguf.get_float(key("rope.freq_base_swa"), base),
        rope_scaling=scaling,
        rope_scaling_window=(
            scaling if arch.window_rope_scaled else RopeScaling(attention_factor=scaling.magnitude)
        ),
        rope_sections=read_rope_sections(gguf),
        rope=read_rope_layers(gguf, arch, positions, windowed),
        window=window,
        windowed=windowed,
        attention_softcap=gguf.get_float(key("attn_logit_softcapping"), 0.0),
        logit_softcap=gguf.get_float(key("final_logit_softcapping"), 0.0),
        attention_scale=_attention_scale(gguf, arch, n_layers, head, head_default),
        alibi_bias=_alibi_bias(gguf, positions),
        mla_latent=_mla_latent(gguf),
        sparsity=read_sparsity(
            gguf, n_layers, _epsilon(gguf, arch), own="indexer_epsilon" not in arch.quirks
        ),
        compress_ratios=_compress_ratios(gguf, n_layers),
        clamp_qkv=gguf.get_float(key("attention.clamp_kqv"), 0.0),
        value_scale=gguf.get_float(key("attention.value_scale"), 0.0) or 1.0,
        temperature=_temperature(gguf, arch, windowed),
        embedding_scale=_embedding_scale(gguf, arch, n_embd),
        residual_scale=_residual_scale(gguf, arch, n_layers),
        logit_scale=_logit_scale(gguf, arch, n_embd),
        cycles=_cycles(gguf, n_layers),
        causal=bool(gguf.metadata.get(key("attention.causal"), True)),
        n_encoder=gguf.get_int(key("block_count")) if _has_decoder(arch) else 0,
        start_token=gguf.get_int(key("decoder_start_token_id"), 0),
        distance_buckets=gguf.get_int(key("attention.relative_buckets_count"), 0),
        denoising=_denoising(gguf, arch),
        deepstack=_deepstack(gguf, n_layers),
        pooling=pooling_of(gguf.get_int(key("pooling_type"), 0), gguf.path),
        rank_pooling=_rank_pooling(gguf),
        labels=_labels(gguf),
        parallel=bool(gguf.metadata.get(key("use_parallel_residual"), False)),
        ssm_state=gguf.get_int(key("ssm.state_size"), 0) or gguf.get_int(key("wkv.head_size"), 0),
        rescale_every=gguf.get_int(key("rescale_every_n_layers"), 0),
        ssm_norms=bool(gguf.metadata.get(key("ssm.dt_b_c_rms"), False)),
        xielu=_xielu(gguf, arch, n_layers),
        kda_lower=gguf.get_float(key("kda.gate_lower_bound"), 0.0),
        experts=read_experts(gguf, arch, n_layers),
        sparsity_cutoffs=_sparsity_cutoffs(gguf, arch, n_layers),
        n_embd_token=gguf.get_int(key("features_length"), n_embd),
        n_embd_target=n_yielded,
        group_norm=_group_norm(gguf),
    )
    check_hyperparameters(gguf, hparams)
    return hparams


def with_rope(h: Hyperparameters, options: RopeOptions) -> Hyperparameters:
    """The options hold where all keys are seen; windowed layers keep what the file says."""
    scaling = rescaled(h.rope_scaling, options)
    base = options.base or h.rope_base
    if any(h.rope) and not scaling.is_sound(base, h.n_rot):
        raise EngineError(
            f"the options for RoPE give angles that are no numbers: base {base}, factor "
            f"{scaling.factor}, attention factor {scaling.attention_factor}, YaRN's extrapolation "
            f"{scaling.extrapolation} and betas {scaling.beta_slow} and {scaling.beta_fast} with "
            f"an original context of {scaling.original_context}"
        )
    return replace(h, rope_base=base, rope_scaling=scaling)


def _with_norm(gguf: GGUFFile, arch: Architecture) -> Architecture:
    """The row with the norms that the file has: of the kind that it has an epsilon of, where they
    may be either, and in the places that it says."""
    if gguf.metadata.get(gguf.arch_key("swin_norm"), False):
        arch = replace(arch, layers="normed_outputs")
    either = "norm_by_epsilon" in arch.quirks
    layer = either and not gguf.get_float(gguf.arch_key(arch.epsilon_key), 0.0)
    return replace(arch, layer_norm=True) if layer else arch


def _with_activation(gguf: GGUFFile, arch: Architecture) -> Architecture:
    """The row with the activation that the file names, if it does, or shows."""
    if "gelu_with_gate" in arch.quirks and "blk.0.ffn_gate.weight" in gguf.tensors:
        return replace(arch, activation="gelu")
    name = gguf.get_str(gguf.arch_key("hidden_activation"), "")
    if name and name not in ACTIVATIONS:
        key = gguf.arch_key("hidden_activation")
        raise ModelError(f"{gguf.path}: {key} is {name!r}, expected {', '.join(ACTIVATIONS)}")
    return replace(arch, activation=ACTIVATIONS[name]) if name else arch


def _has_decoder(arch: Architecture) -> bool:
    """Whether it is one beside an encoder."""
    return "dec." in arch.stacks


def _n_layers(gguf: GGUFFile, arch: Architecture) -> int:
    """Layers that tokens go through, of an encoder and a decoder together: those that predict
    further tokens at once come after."""
    key = gguf.arch_key
    n = sum(gguf.get_int(key(f"{name}block_count"), 0) for name in arch.counted_stacks)
    if not 0 < n <= MOST_LAYERS:  # it sizes tuples before any tensor is looked at
        raise ModelError(f"{gguf.path}: {key('block_count')} is {n}, expected 1 to {MOST_LAYERS}")
    n_ahead = gguf.get_int(key("nextn_predict_layers"), 0)
    if not 0 <= n_ahead < n:
        raise ModelError(f"{gguf.path}: {key('nextn_predict_layers')} is {n_ahead} of {n} layers")
    if not _has_decoder(arch):
        return n - n_ahead
    n_decoder = gguf.get_int(key("decoder_block_count"), n)
    if not 0 < n_decoder <= MOST_LAYERS:
        name = key("decoder_block_count")
        raise ModelError(f"{gguf.path}: {name} is {n_decoder}, expected 1 to {MOST_LAYERS}")
    return n + n_decoder


def _rank_pooling(gguf: GGUFFile) -> Pooling:
    """The mean of all, or by the token that has seen all: the first of an encoder, or the last."""
    kind = pooling_of(gguf.get_int(gguf.arch_key("classifier.pooling_type"), 0), gguf.path)
    causal = gguf.metadata.get(gguf.arch_key("attention.causal"), True)
    return kind if kind == "mean" else "last" if causal else "cls"


def _denoising(gguf: GGUFFile, arch: Architecture) -> Denoising | None:
    if "denoises" not in arch.quirks:
        return None
    shifted = bool(gguf.metadata.get("diffusion.shift_logits", True))
    return Denoising(gguf.get_int("tokenizer.ggml.mask_token_id"), shifted)


def _labels(gguf: GGUFFile) -> tuple[str, ...]:
    value = gguf.metadata.get(gguf.arch_key("classifier.output_labels"), ())
    if isinstance(value, str) or not isinstance(value, Iterable):
        return ()
    return tuple(str(label) for label in value)


def _heads(gguf: GGUFFile, n_layers: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Heads of Q and of K and V, per layer; none where there is no attention."""
    n_heads = per_layer_ints(gguf, "attention.head_count", n_layers, (0,) * n_layers)
    n_kv = per_layer_ints(gguf, "attention.head_count_kv", n_layers, n_heads)
    recurrent = _recurrent_layers(gguf, n_layers)
    attends = [not r and _attends(gguf, i) for i, r in enumerate(recurrent)]
    if any(attends) and not any(n_heads):
        key = gguf.arch_key("attention.head_count")
        raise ModelError(f"{gguf.path}: {key} is 0 or missing, though there is attention")
    n_heads, n_kv = (
        tuple(n if on else 0 for n, on in zip(each, attends, strict=True))
        for each in (n_heads, n_kv)
    )
    if any(h and k and h % k for h, k in zip(n_heads, n_kv, strict=True)):
        raise ModelError(
            f"{gguf.path}: {n_heads} attention heads over {n_kv} KV heads, expected multiples"
        )
    return n_heads, n_kv


def _widths(gguf: GGUFFile) -> tuple[int, int]:
    """Values of the stream and, where these are others, of what the model yields, or 0."""
    yielded = gguf.get_int(gguf.arch_key("embedding_length"))
    width = gguf.get_int(gguf.arch_key("posnet.embedding_length"), yielded)
    return width, yielded if yielded != width else 0


def _head_sizes(gguf: GGUFFile, default: int) -> HeadSizes:
    """Those of layers without a window; a file that llama.cpp saves has 0 where none attends."""
    qk = gguf.get_int(gguf.arch_key("attention.key_length"), default) or default
    v = gguf.get_int(gguf.arch_key("attention.value_length"), default) or default
    return HeadSizes(qk, v, gguf.get_int(gguf.arch_key("rope.dimension_count"), qk))


def _head_window(gguf: GGUFFile, elsewhere: HeadSizes) -> HeadSizes:
    names = ("attention.key_length", "attention.value_length", "rope.dimension_count")
    own = (gguf.get_int(gguf.arch_key(f"{name}_swa"), 0) for name in names)
    return HeadSizes(*(size or other for size, other in zip(own, elsewhere, strict=True)))


def _kv_layers(gguf: GGUFFile, arch: Architecture, windowed: tuple[bool, ...]) -> tuple[int, ...]:
    """The last layers share the K and V of the last one before them that is of their kind."""
    key, n = gguf.arch_key("attention.shared_kv_layers"), len(windowed)
    n_shared = gguf.get_int(key, max(n - (arch.own_kv_layers or n), 0))
    if not 0 <= n_shared < n:
        raise ModelError(f"{gguf.path}: {key} is {n_shared}, expected 0 to {n - 1}")
    own = range(n - n_shared)
    last = {kind: i for i, kind in enumerate(windowed[: len(own)])}
    if not last.keys() >= set(windowed):
        raise ModelError(f"{gguf.path}: {key} is {n_shared}, but no layer of the same kind is left")
    return (*own, *(last[kind] for kind in windowed[len(own) :]))


def _recurrent_layers(gguf: GGUFFile, n_layers: int) -> tuple[bool, ...]:
    """Layers with linear attention in the tensors of attention, where the file says which."""
    key = gguf.arch_key("attention.recurrent_layers")
    value = gguf.metadata.get(key)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(bool(v) for v in of_layers(gguf, key, list(value), n_layers))
    return tuple(f"blk.{i}.ssm_conv1d_k.weight" in gguf.tensors for i in range(n_layers))


def _attends(gguf: GGUFFile, layer: int) -> bool:
    in_cycles = "hrm.z_l_init" in gguf.tensors  # a layer is a run through one of fewer
    outputs = (f"blk.{layer}.attn_output{x}.weight" for x in ("", "_a"))
    return in_cycles or any(name in gguf.tensors for name in outputs)


def _deepstack(gguf: GGUFFile, n_layers: int) -> tuple[int, ...]:
    """By layer, which part of an image's embeddings is added to its output, 0 for none: the first
    layers' are in order, or the file says what each layer's input gets."""
    key = gguf.arch_key("deepstack_mapping")
    mapping = gguf.metadata.get(key)
    if mapping is None:
        n = gguf.get_int(gguf.arch_key("n_deepstack_layers"), 0)
        return tuple(i + 1 if i < n else 0 for i in range(n_layers))
    inputs = [int(part) for part in np.atleast_1d(mapping)]
    if len(inputs) < n_layers or max(inputs) > n_layers:
        raise ModelError(
            f"{gguf.path}: {key} is {inputs}, expected numbers of parts for {n_layers} layers"
        )
    return tuple(max(part, 0) for part in [*inputs[1:n_layers], 0])


def _cycles(gguf: GGUFFile, n_layers: int) -> tuple[int, int, int] | None:
    if "hrm.z_l_init" not in gguf.tensors:
        return None
    names = ("layers_per_stack", "l_cycles", "h_cycles")
    per_stack, low, high = (gguf.get_int(gguf.arch_key(f"hrm.{name}")) for name in names)
    if min(per_stack, low, high) < 1 or per_stack * (low + 1) * high != n_layers:
        raise ModelError(
            f"{gguf.path}: {high} times {low} low stacks and a high one of {per_stack} layers "
            f"are not {n_layers} layers (hrm.h_cycles, hrm.l_cycles, hrm.layers_per_stack)"
        )
    return per_stack, low, high


def _windows(gguf: GGUFFile, arch: Architecture, n_layers: int) -> tuple[int, tuple[bool, ...]]:
    """The window, and which layers have it: by the file's pattern (flags, or "every n-th sees
    all"), or the architecture's."""
    key = gguf.arch_key("attention.sliding_window_pattern")
    value = gguf.metadata.get(key)
    window = gguf.get_int(gguf.arch_key("attention.sliding_window"), 0)
    if arch.window_all:
        return window, (window > 0,) * n_layers
    shallow = "windows_from_64_layers" in arch.quirks and n_layers < 64
    if value is None or window < 1 or shallow:
        return 0, (False,) * n_layers
    if isinstance(value, Iterable) and not isinstance(value, str):
        return window, tuple(bool(v) for v in of_layers(gguf, key, list(value), n_layers))
    n = gguf.get_int(key)
    shift = 0 if "window_after_first" in arch.quirks else 1
    return window, tuple(n > 0 and (i + shift) % n != 0 for i in range(n_layers))


def _attention_scale(
    gguf: GGUFFile, arch: Architecture, n_layers: int, head: int, head_default: int
) -> float:
    wide = arch.wide_scale_layers == n_layers
    power = -1.0 if "scores_by_head_size" in arch.quirks else -0.5
    default = float(head_default if wide else head) ** power
    names = ("attention.scale", "attention.output_scale")
    values = (gguf.get_float(gguf.arch_key(name), 0.0) for name in names)
    return next((value for value in values if value), default)


def _compress_ratios(gguf: GGUFFile, n_layers: int) -> tuple[int, ...]:
    """Keys of several tokens end where a page does, or where some of its tokens do."""
    key = gguf.arch_key("attention.compress_ratios")
    value = gguf.metadata.get(key)
    if not any(name.endswith(".attn_kv.weight") for name in gguf.tensors):
        return ()
    if value is None:  # a draft, which compresses none
        return (0,) * n_layers
    ratios = [int(r) for r in value] if isinstance(value, np.ndarray) else []
    if len(ratios) < n_layers or any(r < 0 or (r and r % PAGE and PAGE % r) for r in ratios):
        raise ModelError(
            f"{gguf.path}: {key} is {value} for {n_layers} layers, expected for each 0, a "
            f"divisor or a multiple of {PAGE}"
        )
    return tuple(ratios[:n_layers])


def _mla_latent(gguf: GGUFFile) -> int:
    """Files with matrices per head say how long a head's K is without the latent space."""
    if gguf.arch_key("attention.key_length_mla") not in gguf.metadata:
        return 0
    return gguf.get_int(gguf.arch_key("attention.kv_lora_rank"))


def _alibi_bias(gguf: GGUFFile, positions: Positions) -> float:
    default = 8.0 if positions == "alibi" else 0.0
    return gguf.get_float(gguf.arch_key("attention.max_alibi_bias"), default)


def _temperature(
    gguf: GGUFFile, arch: Architecture, windowed: tuple[bool, ...]
) -> tuple[float, int, float] | None:
    """How Q grows with its position: llama4 in layers without RoPE, mistral3 in all."""
    if "chunked_windows" in arch.quirks:
        return (0.1, 8192, 1.0) if any(windowed) else None
    growth = gguf.get_float(gguf.arch_key("attention.temperature_scale"), 0.0)
    n_ctx = gguf.get_int(gguf.arch_key("context_length"))
    original = gguf.get_int(gguf.arch_key("rope.scaling.original_context_length"), n_ctx)
    step = gguf.get_int(gguf.arch_key("attention.temperature_length"), 0) or original
    return (growth, step, 0.0) if growth else None


def _embedding_scale(gguf: GGUFFile, arch: Architecture, n_embd: int) -> float:
    if arch.scale_embedding:
        return float(np.float32(np.sqrt(n_embd)))
    return gguf.get_float(gguf.arch_key("embedding_scale"), 0.0) or 1.0


def _residual_scale(gguf: GGUFFile, arch: Architecture, n_layers: int) -> float:
    if "normed_residuals" in arch.quirks:  # it is of what outputs are added to
        return 1.0
    value = gguf.get_float(gguf.arch_key("residual_scale"), 0.0)
    return value or (1.4 / n_layers**0.5 if "minicpm_scales" in arch.quirks else 1.0)


def _logit_scale(gguf: GGUFFile, arch: Architecture, n_embd: int) -> float:
    value = gguf.get_float(gguf.arch_key("logit_scale"), 0.0)
    if not value:
        return 256.0 / n_embd if "minicpm_scales" in arch.quirks else 1.0
    return 1.0 / value if arch.divide_logits else value


def _xielu(gguf: GGUFFile, arch: Architecture, n_layers: int) -> tuple[Xielu, ...]:
    """The file has the numbers whose softplus counts (https://arxiv.org/abs/2411.13010)."""
    if arch.activation != "xielu":
        return ()
    names = ("alpha_n", "alpha_p", "beta", "eps")
    numbers = [per_layer_floats(gguf, f"xielu.{name}", n_layers) for name in names]
    return tuple(
        Xielu(beta + float(np.logaddexp(0, n)), float(np.logaddexp(0, p)), beta, eps)
        for n, p, beta, eps in zip(*numbers, strict=True)
    )


def _sparsity_cutoffs(gguf: GGUFFile, arch: Architecture, n_layers: int) -> tuple[float, ...]:
    """Files write -inf where nothing is cut off."""
    key = gguf.arch_key("activation_sparsity_scale")
    value = gguf.metadata.get(key)
    if not isinstance(value, np.ndarray):
        return tuple(SPARSITY_CUTOFF * (i < arch.sparse_layers) for i in range(n_layers))
    found = (float(v) for v in of_layers(gguf, key, value.tolist(), n_layers))
    return tuple(v if isfinite(v) and v > 0 else 0.0 for v in found)


def _group_norm(gguf: GGUFFile) -> tuple[int, float] | None:
    n = gguf.get_int(gguf.arch_key("attention.group_norm_groups"), 0)
    return (n, gguf.get_float(gguf.arch_key("attention.group_norm_epsilon"))) if n else None


def _n_positions(gguf: GGUFFile) -> int:
    tensor = gguf.tensors.get("position_embd.weight")
    return 0 if tensor is None else tensor.shape[-1]


def _n_vocab(gguf: GGUFFile) -> int:
    tensor = gguf.tensors.get("token_embd.weight") or gguf.tensors.get("output.weight")
    if tensor is None or len(tensor.shape) != 2:
        raise ModelError(f"{gguf.path}: no matrix token_embd.weight")
    return tensor.shape[1]


def _epsilon(gguf: GGUFFile, arch: Architecture) -> float:
    own, other = gguf.arch_key(arch.epsilon_key), gguf.arch_key("attention.layer_norm_epsilon")
    return gguf.get_float(own if own in gguf.metadata else other)
