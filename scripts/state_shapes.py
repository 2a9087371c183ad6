"""Shapes of models with states instead of attention, or beside it."""

from __future__ import annotations

from collections.abc import Iterator

from shape_parts import (
    Number,
    Shape,
    Tensor,
    attention,
    experts,
    ffn,
    set_heads,
    shared_expert,
    start,
    vectors,
)


def _mamba2(width: int, inner: int, state: int, heads: int, groups: int) -> Iterator[Tensor]:
    channels = inner + 2 * groups * state
    yield "ssm_in.weight", (width, inner + channels + heads)
    yield "ssm_conv1d.weight", (4, channels)
    yield "ssm_conv1d.bias", (channels,)
    yield "ssm_dt.bias", (heads,)
    yield "ssm_a", (1, heads)
    yield "ssm_d", (1, heads)
    yield "ssm_norm.weight", (inner // groups, groups)
    yield "ssm_out.weight", (inner, width)


def _mamba2_keys(inner: int, state: int, heads: int, groups: int) -> dict[str, Number]:
    return {
        "ssm.conv_kernel": 4, "ssm.inner_size": inner, "ssm.state_size": state,
        "ssm.time_step_rank": heads, "ssm.group_count": groups,
    }  # fmt: skip


def lfm2(n_layers: int, width: int, heads: int, kv: int, head: int, ff: int) -> Shape:
    """Attention in every third layer, short convolutions in the others."""
    shape = start("lfm2", n_layers, width)
    shape.tensors = [
        ("token_embd_norm.weight", sizes) if name == "output_norm.weight" else (name, sizes)
        for name, sizes in shape.tensors
    ]
    set_heads(shape, heads, kv, head)
    pattern = [i % 3 == 2 for i in range(n_layers)]
    shape.keys |= {
        "feed_forward_length": ff, "shortconv.l_cache": 3,
        "attention.head_count_kv": [kv * each for each in pattern],
    }  # fmt: skip
    for i, attends in enumerate(pattern):
        shape.add(*vectors(width, "attn_norm", "ffn_norm"), *ffn(width, ff), at=i)
        if attends:
            shape.add(*vectors(head, "attn_q_norm", "attn_k_norm"), at=i)
            shape.add(*attention(width, heads, kv, head), at=i)
        else:
            shape.add(
                ("shortconv.in_proj.weight", (width, 3 * width)),
                ("shortconv.conv.weight", (3, width)),
                ("shortconv.out_proj.weight", (width, width)), at=i,
            )  # fmt: skip
    return shape


def mamba2(n_layers: int, width: int, state: int = 128, groups: int = 1) -> Shape:
    shape = start("mamba2", n_layers, width)
    inner = 2 * width
    shape.keys |= _mamba2_keys(inner, state, inner // 64, groups)
    for i in range(n_layers):
        shape.add(*vectors(width, "attn_norm"), at=i)
        shape.add(*_mamba2(width, inner, state, inner // 64, groups), at=i)
    return shape


def falcon_h1(n_layers: int, width: int, heads: int, kv: int, head: int, ff: int) -> Shape:
    """Attention and a state space side by side in every layer. The norm's name has no ".weight"
    in published files."""
    shape = start("falcon-h1", n_layers, width)
    set_heads(shape, heads, kv, head)
    inner = 2 * width
    shape.keys["feed_forward_length"] = ff
    shape.keys |= _mamba2_keys(inner, 128, inner // 64, 1)
    for i in range(n_layers):
        shape.add(*vectors(width, "attn_norm"), ("ffn_norm", (width,)), at=i)
        shape.add(*ffn(width, ff), at=i)
        shape.add(*attention(width, heads, kv, head), at=i)
        shape.add(*_mamba2(width, inner, 128, inner // 64, 1), at=i)
    return shape


def granitehybrid(n_layers: int, width: int, heads: int, kv: int, head: int, ff: int) -> Shape:
    """Attention in every fourth layer, a state space in the others."""
    shape = start("granitehybrid", n_layers, width)
    set_heads(shape, heads, kv, head)
    pattern = [i % 4 == 3 for i in range(n_layers)]
    inner = 2 * width
    shape.keys["feed_forward_length"] = ff
    shape.keys["attention.head_count_kv"] = [kv * each for each in pattern]
    shape.keys |= _mamba2_keys(inner, 128, inner // 64, 1)
    for i, attends in enumerate(pattern):
        shape.add(*vectors(width, "attn_norm", "ffn_norm"), *ffn(width, ff), at=i)
        if attends:
            shape.add(*attention(width, heads, kv, head), at=i)
        else:
            shape.add(*_mamba2(width, inner, 128, inner // 64, 1), at=i)
    return shape


def qwen3next(
    n_layers: int, width: int, heads: int, kv: int, head: int, ff: int, n: int, used: int
) -> Shape:
    """Gated attention in every fourth layer, a gated delta rule in the others: heads of 128, two
    of V for one of Q and K. Experts, and one more for every token, in all."""
    shape = start("qwen3next", n_layers, width)
    set_heads(shape, heads, kv, head)
    inner, n_v = 2 * width, 2 * width // 128
    shape.keys |= {
        "rope.dimension_count": head // 4, "feed_forward_length": ff,
        "expert_feed_forward_length": ff, "expert_shared_feed_forward_length": ff,
        "expert_count": n, "expert_used_count": used,
        "attention.recurrent_layers": [int(i % 4 != 3) for i in range(n_layers)],
        "ssm.conv_kernel": 4, "ssm.inner_size": inner, "ssm.state_size": 128,
        "ssm.time_step_rank": n_v, "ssm.group_count": n_v // 2,
    }  # fmt: skip
    for i in range(n_layers):
        shape.add(*vectors(width, "attn_norm", "post_attention_norm"), at=i)
        if i % 4 == 3:
            shape.add(*vectors(head, "attn_q_norm", "attn_k_norm"), at=i)
            (q, (_, rows)), *others = attention(width, heads, kv, head)
            shape.add((q, (width, 2 * rows)), *others, at=i)  # with a gate for each value
        else:
            shape.add(*_delta_net(width, inner, n_v), at=i)
        shape.add(*experts(width, ff, n), *shared_expert(width, ff), at=i)
        shape.add(*vectors(width, "ffn_gate_inp_shexp"), at=i)
    return shape


def _delta_net(width: int, inner: int, n_v: int) -> Iterator[Tensor]:
    yield "attn_qkv.weight", (width, 2 * inner)
    yield "attn_gate.weight", (width, inner)
    yield "ssm_ba.weight", (width, 2 * n_v)
    yield "ssm_conv1d.weight", (4, 2 * inner)
    yield "ssm_dt.bias", (n_v,)
    yield "ssm_a", (n_v,)
    yield "ssm_norm.weight", (128,)
    yield "ssm_out.weight", (inner, width)


def rwkv7(n_layers: int, width: int, decay: int = 64, value: int = 32, gate: int = 128) -> Shape:
    """Heads of 64; ``decay``, ``value`` and ``gate`` are ranks, and rates have that of decays."""
    shape = start("rwkv7", n_layers, width)
    shape.keys |= {
        "attention.layer_norm_epsilon": 1e-5, "attention.head_count": 0,
        "feed_forward_length": 4 * width, "wkv.head_size": 64,
        "attention.decay_lora_rank": decay, "attention.iclr_lora_rank": decay,
        "attention.value_residual_mix_lora_rank": value, "attention.gate_lora_rank": gate,
    }  # fmt: skip
    shape.add(("output_norm.bias", (width,)), *vectors(width, "token_embd_norm"))
    shape.add(("token_embd_norm.bias", (width,)))
    for i in range(n_layers):
        ranks = {"w": decay, "a": decay, "v": value if i else decay, "g": gate}
        for norm in ("attn_norm", "attn_norm_2", "time_mix_ln"):
            shape.add((f"{norm}.weight", (width,)), (f"{norm}.bias", (width,)), at=i)
        for name, rank in ranks.items():
            shape.add((f"time_mix_{name}1.weight", (width, rank)), at=i)
            shape.add((f"time_mix_{name}2.weight", (rank, width)), at=i)
        shape.add(*vectors(width, *(f"time_mix_{name}" for name in _RWKV7_VECTORS)), at=i)
        for name in ("key", "value", "receptance", "output"):
            shape.add((f"time_mix_{name}.weight", (width, width)), at=i)
        shape.add(
            ("time_mix_lerp_fused.weight", (width, 1, 1, 6)),
            ("channel_mix_lerp_k.weight", (width, 1, 1)),
            ("channel_mix_key.weight", (width, 4 * width)),
            ("channel_mix_value.weight", (4 * width, width)), at=i,
        )  # fmt: skip
    return shape


_RWKV7_VECTORS = ("w0", "a0", "v0", "k_k", "k_a", "r_k")
