"""Which tensors a file must have: those without which llama.cpp refuses it, or ends.

What a layer is shows by its tensors, so most are needed beside their like only: a layer with
any tensor of experts needs all that experts are made of. Rows of the table of architectures are
sums of the sets that are here, such as ``DECODER + GLU``.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

# Where a tensor is needed: in the model, every layer, or layers with any other of this scope.
Scope = Literal[
    "model", "layer", "attention", "compressor", "indexer", "state", "n-grams", "ffn", "experts",
    "shared", "chunks", "per layer", "gate", "latent experts",
    "convolutions",
    "later layers",  # all but the first
    "tables",  # outside layers, too
    "own K and V",  # layers that do not share those of an earlier one
]  # fmt: skip


class Need(NamedTuple):
    """A tensor that must be there: one of ``names``, unless the layer has ``unless``, which
    shows it to be of another kind."""

    scope: Scope
    names: tuple[str, ...]  # within a layer, without ".weight"
    unless: str = ""


Needs = tuple[Need, ...]


def needs(scope: Scope, *names: str | tuple[str, ...], unless: str = "") -> Needs:
    """Needs of one scope; a tuple of names stands for any of them."""
    listed = ((name,) if isinstance(name, str) else name for name in names)
    return tuple(Need(scope, alternatives, unless) for alternatives in listed)


# Outside layers
EMBEDDING = needs("model", "token_embd")
EMBEDDING_NORM = needs("model", "token_embd_norm")
OUTPUT_NORM = needs("model", "output_norm")
ENCODER_OUTPUT_NORM = needs("model", "enc.output_norm")
OUTPUT = needs("model", "output")
ENDS = EMBEDDING + OUTPUT_NORM

# Norms
ATTENTION_NORM = needs("layer", "attn_norm")
FFN_NORM = needs("layer", "ffn_norm")
NORMS = ATTENTION_NORM + FFN_NORM
POST_ATTENTION_NORM = needs("layer", "post_attention_norm")
POST_NORMS = POST_ATTENTION_NORM + needs("layer", "post_ffw_norm")
NORM_BIASES = needs("model", "output_norm.bias") + needs("layer", "attn_norm.bias", "ffn_norm.bias")

# Attention; its three matrices may be one
QKV = needs(
    "attention", ("attn_q", "attn_qkv"), ("attn_k", "attn_qkv"), ("attn_v", "attn_qkv"),
    "attn_output",
)  # fmt: skip
QKV_BIAS = needs("attention", "attn_qkv.bias")
QKV_BIASES = ("attn_q.bias", "attn_k.bias", "attn_v.bias")  # that some files have in vain
QK_NORM = needs("attention", "attn_q_norm", "attn_k_norm")
SINKS = needs("attention", "attn_sinks")
ATTENTION_GATE = needs("attention", "attn_gate")
ATTENTION_OUTPUT_BIAS = needs("attention", "attn_output.bias")
IMAGE_WEIGHTS = needs(  # of tokens that are an image's
    "layer", "vis_attn_qkv", "vis_attn_output", "vis_gate", "vis_up", "vis_down"
)
SUB_NORMS = needs("attention", "attn_sub_norm") + needs("ffn", "ffn_sub_norm")
DECODER = ENDS + NORMS + QKV
# One vector that is K and V of all heads, and a factorized output
JOINT_KV = needs(
    "attention", "attn_q_a", "attn_q_a_norm", "attn_q_b", "attn_kv", "attn_kv_a_norm",
    "attn_output_a", "attn_output_b",
)  # fmt: skip

# Latent attention; DeepSeek-V2-Lite has attn_q, older files attn_kv_b
LATENT = ENDS + NORMS + needs(
    "attention", "attn_output", "attn_kv_a_mqa", ("attn_q_a", "attn_q"), "attn_kv_a_norm",
    ("attn_k_b", "attn_kv_b"), ("attn_v_b", "attn_kv_b"),
) + needs("attention", "attn_q_a_norm", "attn_q_b", unless="attn_q")  # fmt: skip
INDEXER = needs("indexer", "indexer.attn_k", "indexer.attn_q_b", "indexer.proj")
INDEXER_NORM = needs("indexer", "indexer.k_norm", "indexer.k_norm.bias")
BLOCK_INDEXER = needs(
    "indexer", "indexer.k_norm", "indexer.k_proj", "indexer.q_norm", "indexer.q_proj"
)
# Of layers that compress keys, and of those among them that choose some of the compressed
COMPRESSOR = needs(
    "compressor", "attn_compressor_kv", "attn_compressor_gate", "attn_compressor_ape",
    "attn_compressor_norm",
) + needs(
    "indexer", "indexer_compressor_kv", "indexer_compressor_gate", "indexer_compressor_ape",
    "indexer_compressor_norm", "indexer.proj", "indexer.attn_q_b",
)  # fmt: skip

# FFN and experts; GLU: with a gate
FFN = needs("ffn", "ffn_up", "ffn_down")
GLU = FFN + needs("ffn", "ffn_gate")
BIASES = NORM_BIASES + ATTENTION_OUTPUT_BIAS + needs("ffn", "ffn_up.bias", "ffn_down.bias")
_EXPERTS = needs("experts", "ffn_down_exps", ("ffn_up_exps", "ffn_gate_up_exps"))
EXPERTS = needs("experts", "ffn_gate_inp") + _EXPERTS
GLU_EXPERTS = EXPERTS + needs("experts", ("ffn_gate_exps", "ffn_gate_up_exps"))
CHOICE_BIAS = needs("experts", "exp_probs_b.bias")  # that counts in the choice of experts only
EXPERT_BIASES = needs(
    "experts", "ffn_gate_inp.bias", "ffn_gate_exps.bias", "ffn_up_exps.bias", "ffn_down_exps.bias"
)
# Where files have tensors of both in every layer, the router shows which counts
FFN_OR_EXPERTS = needs("ffn", "ffn_up", "ffn_down", unless="ffn_gate_inp") + _EXPERTS
SHARED = needs("shared", "ffn_up_shexp", "ffn_down_shexp")
GLU_SHARED = SHARED + needs("shared", "ffn_gate_shexp")
SHARED_GATE = needs("shared", "ffn_gate_inp_shexp")
LLAMA = DECODER + GLU + EXPERTS + GLU_SHARED  # what many are: with experts or without
ENCODER = EMBEDDING + EMBEDDING_NORM + needs("model", "token_embd_norm.bias") + QKV + needs(
    "layer", "attn_output_norm", "attn_output_norm.bias", "layer_output_norm",
    "layer_output_norm.bias",
) + FFN  # fmt: skip

# A model's own adapters, which are switched on by tokens
SWITCHED = needs("layer", *(
    f"{matrix}.lora_{x}"
    for matrix in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down")
    for x in "ab"
))  # fmt: skip

# State spaces and convolutions
_STATE = needs("state", "ssm_a", "ssm_conv1d", "ssm_dt.bias", "ssm_out")
CONV_BIAS = needs("state", "ssm_conv1d.bias")
STATE_NORM = needs("state", "ssm_norm")
MAMBA = _STATE + needs("state", "ssm_d", "ssm_in")
MAMBA_1 = MAMBA + needs("state", "ssm_x", "ssm_dt")
STEP_NORMS = needs("state", "ssm_dt_norm", "ssm_b_norm", "ssm_c_norm")
SHORT_CONV = needs("state", "shortconv.conv", "shortconv.in_proj", "shortconv.out_proj")

# RWKV: time mixes, and channel mixes in the place of FFNs
TIME_MIX = needs(
    "layer", "time_mix_w1", "time_mix_w2", "time_mix_key", "time_mix_value",
    "time_mix_receptance", "time_mix_output",
)  # fmt: skip
RWKV_6 = TIME_MIX + needs(
    "layer", "time_mix_lerp_x", "time_mix_decay", "time_mix_decay_w1", "time_mix_decay_w2",
    "time_mix_gate",
)  # fmt: skip
RWKV_7 = TIME_MIX + needs(
    "layer", "time_mix_lerp_fused", "time_mix_w0", "time_mix_a0", "time_mix_a1", "time_mix_a2",
    "time_mix_v0", "time_mix_v1", "time_mix_v2", "time_mix_k_k", "time_mix_k_a", "time_mix_r_k",
)  # fmt: skip
# Of the first layer, whose own values are those that others mix with theirs
FIRST_VALUE_SHARES = tuple(f"blk.0.time_mix_v{i}.weight" for i in range(3))
TIME_MIX_GATE = needs("layer", "time_mix_g1", "time_mix_g2")
TIME_MIX_GATE_IF_ANY = needs("gate", "time_mix_g1", "time_mix_g2")
TIME_MIX_NORM = needs("layer", "time_mix_ln", "time_mix_ln.bias")
CHANNEL_MIX = needs(
    "layer", "attn_norm_2", "attn_norm_2.bias", "channel_mix_lerp_k", "channel_mix_key",
    "channel_mix_value",
)  # fmt: skip
RWKV_ENDS = ENDS + EMBEDDING_NORM + OUTPUT + needs(
    "model", "token_embd_norm.bias", "output_norm.bias"
) + ATTENTION_NORM + needs("layer", "attn_norm.bias")  # fmt: skip

# Convolutions around attention and FFN, over the tokens of a block that is drafted
BLOCK_CONVOLUTIONS = needs(
    "convolutions", "attn_conv_base", "attn_conv_proj", "ffn_conv_base", "ffn_conv_proj"
)

# Gated delta nets, and in other layers attention with norms of its heads
DELTA_NET = _STATE + STATE_NORM + needs(
    "attention", "attn_q", "attn_k", "attn_v", "attn_output", "attn_q_norm", "attn_k_norm",
    unless="ssm_a",
) + needs(
    "attention", ("attn_qkv", "ssm_in"), ("attn_gate", "ssm_in"), unless="attn_q"
)  # fmt: skip
DELTA_RATES = needs("state", "ssm_alpha", "ssm_beta")
# Kimi's delta attention, and in other layers latent attention
KIMI_LAYERS = needs(
    "state", "ssm_a", "ssm_beta", "ssm_conv1d_q", "ssm_conv1d_k", "ssm_conv1d_v", "ssm_dt.bias",
    "ssm_f_a", "ssm_norm",
) + needs("attention", "attn_output") + needs(
    "attention", "attn_kv_a_mqa", "attn_kv_a_norm", ("attn_k_b", "attn_kv_b"),
    ("attn_v_b", "attn_kv_b"), unless="ssm_a",
) + needs("attention", "attn_k", "attn_v", unless="attn_kv_a_mqa")  # fmt: skip
KIMI_Q = needs("attention", "attn_q", unless="attn_kv_a_mqa") + needs(
    "attention", "attn_q_a", "attn_q_a_norm", "attn_q_b", unless="ssm_a"
)

# Several residual streams
HYPER = needs(
    "layer", "hc_attn_base", "hc_attn_fn", "hc_attn_scale", "hc_ffn_base", "hc_ffn_fn",
    "hc_ffn_scale",
)  # fmt: skip
OUTPUT_HYPER = needs("model", "output_hc_base", "output_hc_fn", "output_hc_scale")
STREAMS = needs(
    "layer", "hc_attn_norm", "hc_attn_down", "hc_attn_up", "hc_attn_inject", "hc_ffn_norm",
    "hc_ffn_down", "hc_ffn_up", "hc_ffn_inject",
)  # fmt: skip
OUTPUT_STREAMS = needs("model", "output_hc_norm", "output_hc_down", "output_hc_up")
PER_LAYER = needs("per layer", "inp_gate", "proj", "post_norm")  # of layers' own embeddings
PER_LAYER_TABLE = needs(
    "tables", "per_layer_token_embd", "per_layer_model_proj", "per_layer_proj_norm"
)
NGRAMS = needs("model", "per_layer_token_embd") + needs(
    "n-grams", "ple_conv1d", "ple_key", "ple_value", "ple_norm_conv", "ple_norm_key",
    "ple_norm_query",
)  # fmt: skip
