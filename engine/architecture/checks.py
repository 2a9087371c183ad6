"""Hyperparameters that cannot be right are refused by the keys that they come from."""

from __future__ import annotations

import numpy as np

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile

LARGEST = float(np.finfo(np.float32).max)


def check_hyperparameters(gguf: GGUFFile, h: Hyperparameters) -> None:
    """Raises ModelError that names a key whose value cannot be, or cannot be computed with."""
    positive = {
        "block_count": h.n_layers,
        "embedding_length": h.n_embd,
        "context_length": h.n_ctx_train,
    }
    for name, value in positive.items():
        if not 0 < value < 1 << 24:
            raise ModelError(f"{gguf.path}: {gguf.arch_key(name)} is {value}, not 1 to 2^24")
    for windowed, suffix in ((False, ""), (True, "_swa")):
        qk, v, rotated = h.sizes_by_window(windowed)
        if not 0 < min(qk, v) <= max(qk, v) < 1 << 24:
            raise ModelError(
                f"{gguf.path}: attention.key_length{suffix} is {qk} and value_length{suffix} {v}, "
                "not 1 to 2^24"
            )
        if any(h.rope) and (rotated % 2 or not 0 < rotated <= qk):
            raise ModelError(
                f"{gguf.path}: {rotated} rotated values (rope.dimension_count{suffix}) in a head "
                f"of {qk}, expected an even number of at most these"
            )
    if h.denoising is not None and not 0 <= h.denoising.mask < h.n_vocab:
        raise ModelError(
            f"{gguf.path}: tokenizer.ggml.mask_token_id is {h.denoising.mask}, not one of "
            f"{h.n_vocab} tokens"
        )
    _check_numbers(gguf, h)
    _check_windowed_sizes(gguf, h)
    if h.distance_buckets and not 4 <= h.distance_buckets <= 128:
        key = gguf.arch_key("attention.relative_buckets_count")
        raise ModelError(f"{gguf.path}: {key} is {h.distance_buckets}, expected 4 to 128")
    for layer, used in enumerate(h.experts.used):
        routed = f"blk.{layer}.ffn_gate_inp.weight" in gguf.tensors
        if h.experts.n and routed and not 0 < used <= h.experts.n <= 1024:
            raise ModelError(
                f"{gguf.path}: {used} of {h.experts.n} experts in layer {layer}, not 1 to all"
            )


def _check_windowed_sizes(gguf: GGUFFile, h: Hyperparameters) -> None:
    """Raises ModelError for windowed layers whose heads have sizes of their own, where scores are
    divided by a head's or K and V are no heads."""
    sizes = {"attention.kv_lora_rank": h.mla_latent}
    if not gguf.get_float(gguf.arch_key("attention.scale"), 0.0):
        sizes["attention.key_length"] = h.head
    if h.mla_latent or h.compress_ratios:
        sizes |= {
            "attention.key_length": h.head,
            "attention.value_length": h.head_v,
            "rope.dimension_count": h.n_rot,
        }
    for name in ("attention.key_length_mla", "attention.value_length_mla"):
        sizes[name] = gguf.get_int(gguf.arch_key(name), 0)
    for name, size in sizes.items():
        own = gguf.get_int(gguf.arch_key(f"{name}_swa"), 0) or size
        if any(h.windowed) and own != size:
            raise ModelError(
                f"{gguf.path}: {gguf.arch_key(name)}_swa is {own}, not {size} as elsewhere"
            )


def _check_numbers(gguf: GGUFFile, h: Hyperparameters) -> None:
    """Raises ModelError for numbers with which every logit would be NaN."""
    at_least_0 = {
        h.arch.epsilon_key: h.eps,
        "attn_logit_softcapping": h.attention_softcap,
        "final_logit_softcapping": h.logit_softcap,
        "attention.clamp_kqv": h.clamp_qkv,
    }
    for name, value in at_least_0.items():
        if not 0 <= value <= LARGEST:
            raise ModelError(f"{gguf.path}: {gguf.arch_key(name)} is {value}, not 0 or more")
    finite = {
        "attention.scale": h.attention_scale, "attention.value_scale": h.value_scale,
        "embedding_scale": h.embedding_scale, "residual_scale": h.residual_scale,
        "logit_scale": h.logit_scale, "expert_weights_scale": h.experts.scale,
        "attention.max_alibi_bias": h.alibi_bias,
    }  # fmt: skip
    for name, value in finite.items():
        if not abs(value) <= LARGEST:
            raise ModelError(
                f"{gguf.path}: {gguf.arch_key(name)} gives the factor {value}, not a finite float32"
            )
    ropes = {
        "rope.freq_base": (h.rope_base, h.rope_scaling, h.n_rot),
        "rope.freq_base_swa": (h.rope_base_window, h.rope_scaling_window, h.head_window.rotated),
    }
    for name, (base, scaling, n_rot) in ropes.items():
        if any(h.rope) and not scaling.is_sound(base, n_rot):
            raise ModelError(
                f"{gguf.path}: {gguf.arch_key(name)} is {base} and rope.scaling.factor "
                f"{scaling.factor}: angles would be no numbers"
            )
