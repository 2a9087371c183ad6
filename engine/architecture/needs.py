"""Which tensors a file must have: those without which llama.cpp refuses it, or ends.

What a layer is shows by its tensors, so most are needed beside their like only: a layer with
any tensor of experts needs all that experts are made of. In an entry "|" stands between
alternatives, and "/" before what excuses it: a tensor of layers of another kind. "group:" before
it names a group that its own name does not show.
"""

from __future__ import annotations

import re
from typing import NamedTuple

ENDS = "token_embd output_norm"
QKV = "attn_q|attn_qkv attn_k|attn_qkv attn_v|attn_qkv attn_output"
LAYER = f"{ENDS} attn_norm ffn_norm {QKV}"
QK = "attn_q_norm attn_k_norm"
FFN = "ffn_up ffn_down"
GATED = f"{FFN} ffn_gate"
EXPERTS = "ffn_gate_inp ffn_down_exps ffn_up_exps|ffn_gate_up_exps"
MOE = f"{EXPERTS} ffn_gate_exps|ffn_gate_up_exps"
# Where files have tensors of both in every layer, the router shows which counts.
DENSE_OR_MOE = (
    "ffn_up/ffn_gate_inp ffn_down/ffn_gate_inp ffn_down_exps ffn_up_exps|ffn_gate_up_exps"
)
SHARED = "ffn_up_shexp ffn_down_shexp"
GATED_SHARED = f"{SHARED} ffn_gate_shexp"
POST_NORMS = "post_attention_norm post_ffw_norm"
NORM_BIASES = "output_norm.bias attn_norm.bias ffn_norm.bias"
BIASES = f"{NORM_BIASES} attn_output.bias ffn_up.bias ffn_down.bias"

# Latent attention; DeepSeek-V2-Lite has attn_q, older files attn_kv_b.
LATENT_Q = "attn_q_a|attn_q attn_q_a_norm/attn_q attn_q_b/attn_q"
LATENT_KV = "attn_kv_a_norm attn_k_b|attn_kv_b attn_v_b|attn_kv_b"
LATENT = f"{ENDS} attn_norm ffn_norm attn_output attn_kv_a_mqa {LATENT_Q} {LATENT_KV}"
INDEXER = "indexer.attn_k indexer.attn_q_b indexer.proj"
INDEXER_NORM = "indexer.k_norm indexer.k_norm.bias"
# In layers that compress keys, and in those of them that choose among the compressed.
COMPRESSOR = (
    "attn_compressor_kv attn_compressor_gate attn_compressor_ape attn_compressor_norm "
    "indexer_compressor_kv indexer_compressor_gate indexer_compressor_ape "
    "indexer_compressor_norm indexer.proj indexer.attn_q_b"
)
BLOCK_INDEXER = "indexer.k_norm indexer.k_proj indexer.q_norm indexer.q_proj"

STATE = "ssm_a ssm_conv1d ssm_dt.bias ssm_out"
MAMBA = f"{STATE} ssm_d ssm_in"
MAMBA_1 = f"{MAMBA} ssm_x ssm_dt"
STEP_NORMS = "ssm_dt_norm ssm_b_norm ssm_c_norm"
CONVOLUTIONS = "shortconv.conv shortconv.in_proj shortconv.out_proj"
# Gated delta nets beside attention with norms of its heads.
DELTA_NET = (
    f"{STATE} ssm_norm attn_q/ssm_a attn_k/ssm_a attn_v/ssm_a attn_output/ssm_a "
    "attn_q_norm/ssm_a attn_k_norm/ssm_a attn_qkv|ssm_in/attn_q attn_gate|ssm_in/attn_q"
)
# Kimi's delta attention beside latent attention.
KIMI_STATE = "ssm_a ssm_beta ssm_conv1d_q ssm_conv1d_k ssm_conv1d_v ssm_dt.bias ssm_f_a ssm_norm"
KIMI_LATENT = (
    f"{KIMI_STATE} attn_output attn_kv_a_mqa/ssm_a attn_kv_a_norm/ssm_a "
    "attn_k_b|attn_kv_b/ssm_a attn_v_b|attn_kv_b/ssm_a attn_k/attn_kv_a_mqa attn_v/attn_kv_a_mqa"
)
KIMI_Q = "attn_q/attn_kv_a_mqa attn_q_a/ssm_a attn_q_a_norm/ssm_a attn_q_b/ssm_a"

HYPER = "hc_attn_base hc_attn_fn hc_attn_scale hc_ffn_base hc_ffn_fn hc_ffn_scale"
STREAMS = (
    "hc_attn_norm hc_attn_down hc_attn_up hc_attn_inject "
    "hc_ffn_norm hc_ffn_down hc_ffn_up hc_ffn_inject"
)
NGRAMS = "ple_conv1d ple_key ple_value ple_norm_conv ple_norm_key ple_norm_query"
ENCODER = f"token_embd token_embd_norm {QKV} attn_output_norm layer_output_norm {FFN}"

# Every layer has attention, and an FFN or experts.
_ORDINARY = (
    ("afmoe", f"{LAYER} {QK} {POST_NORMS} attn_gate {GATED} {MOE} {GATED_SHARED} exp_probs_b.bias"),
    ("arcee chatglm mpt phi3", f"{LAYER} {FFN}"),
    ("arctic", f"{LAYER} ffn_norm_exps {GATED} {MOE}"),
    ("baichuan internlm2 xverse", f"{LAYER} {GATED} output"),
    ("bailingmoe", f"{LAYER} {GATED} {MOE} {GATED_SHARED} output"),
    ("bailingmoe2 dots1 exaone-moe", f"{LAYER} {QK} {GATED} {MOE} {GATED_SHARED} output"),
    ("bert jina-bert-v2 jina-bert-v3 nomic-bert nomic-bert-moe", ENCODER),
    ("bloom", f"{LAYER} {FFN} {BIASES} attn_qkv.bias token_embd_norm token_embd_norm.bias"),
    ("codeshell", f"token_embd|output output_norm attn_norm ffn_norm {QKV} {FFN} {BIASES} output"),
    ("cogvlm", f"{LAYER} {GATED} vis_attn_qkv vis_attn_output vis_gate vis_up vis_down"),
    ("cohere2 command-r", f"{ENDS} attn_norm {QKV} {GATED}"),
    ("cohere2moe", f"{ENDS} attn_norm {QKV} {GATED} {EXPERTS} {GATED_SHARED}"),
    ("dbrx", f"{ENDS} attn_norm attn_output_norm {QKV} {MOE} output"),
    ("deepseek llama4", f"{LAYER} {GATED} {MOE} {GATED_SHARED}"),
    ("deepseek2 mistral4", f"{LATENT} {GATED} {MOE} {GATED_SHARED}"),
    ("deepseek32", f"{LATENT} {INDEXER} {INDEXER_NORM} {GATED} {MOE} {GATED_SHARED}"),
    ("deepseek4", f"{ENDS} output output_hc_base output_hc_fn output_hc_scale attn_norm ffn_norm "
     "attn_q_a attn_q_a_norm attn_q_b attn_kv attn_kv_a_norm attn_output_a attn_output_b "
     f"attn_sinks {COMPRESSOR} {HYPER} {MOE} {GATED_SHARED} exp_probs_b.bias/ffn_gate_tid2eid"),
    ("dots3note", f"{LATENT} attn_k_norm attn_gate {INDEXER} {INDEXER_NORM} {GATED} {MOE} "
     f"{GATED_SHARED} exp_probs_b.bias"),
    ("ernie4_5 ernie4_5-moe exaone gemma granite granitemoe llama minicpm mistral3 nanbeige "
     "paddleocr qwen2 qwen2vl refact smollm3", f"{LAYER} {GATED} {EXPERTS} {GATED_SHARED}"),
    ("exaone4", f"{ENDS} {QKV} {QK} {POST_NORMS} {GATED}"),
    ("falcon", f"{ENDS} attn_norm {QKV} {FFN} attn_norm.bias output_norm.bias"),
    ("gemma2", f"{LAYER} {POST_NORMS} {GATED}"),
    ("gemma3", f"{LAYER} {QK} {POST_NORMS} {GATED}"),
    ("glm-dsa", f"{LATENT} {INDEXER} {GATED} {MOE} {GATED_SHARED}"),
    ("glm4", f"{LAYER} {POST_NORMS} {FFN}"),
    ("glm4moe", f"{ENDS} attn_norm post_attention_norm {QKV} {GATED} {MOE} {GATED_SHARED} "
     "exp_probs_b.bias"),
    ("gpt-oss", f"{ENDS} attn_norm post_attention_norm {QKV} attn_sinks attn_output.bias {MOE} "
     "ffn_gate_inp.bias ffn_gate_exps.bias ffn_up_exps.bias ffn_down_exps.bias output"),
    ("gpt2 starcoder", f"{LAYER} {FFN} {BIASES} attn_qkv.bias position_embd"),
    ("gptneox", f"{LAYER} {FFN} {BIASES} attn_qkv.bias output"),
    ("granite_swa", f"{LAYER} attn_sinks {GATED} {EXPERTS} {GATED_SHARED}"),
    ("grok", f"{LAYER} attn_output_norm layer_output_norm|post_ffw_norm {EXPERTS} ffn_down"),
    ("grovemoe", f"{LAYER} {QK} {MOE} ffn_gate_chexps ffn_up_chexps ffn_down_chexps"),
    ("hunyuan-dense hunyuan_vl maincoder openelm qwen3 qwen3vl", f"{LAYER} {QK} {GATED}"),
    ("hunyuan-moe", f"{LAYER} {QK} {MOE} {GATED_SHARED}"),
    ("hy_v3", f"{LAYER} {QK} {DENSE_OR_MOE} {SHARED}"),
    ("hy_v4", f"{LATENT} attn_gate attn_sinks {INDEXER} {INDEXER_NORM} {HYPER} {GATED} {MOE} "
     f"{GATED_SHARED} output output_hc_base output_hc_fn output_hc_scale"),
    ("jais", f"{LAYER} {GATED} {BIASES} attn_qkv.bias ffn_gate.bias output"),
    ("jais2 starcoder2", f"{LAYER} {FFN} {BIASES}"),
    ("laguna", f"{LAYER} {QK} attn_gate {GATED} {MOE} {GATED_SHARED} exp_probs_b.bias"),
    ("maple mellum olmoe", f"{LAYER} {QK} {MOE} output"),
    ("mimo2", f"{LAYER} {DENSE_OR_MOE} output"),
    ("minicpm3", f"{LATENT} {GATED}"),
    ("minimax-m2", f"{LAYER} {QK} {MOE} exp_probs_b.bias output"),
    ("minimax-m3", f"{LAYER} {QK} {BLOCK_INDEXER} {GATED} {MOE} {GATED_SHARED} "
     "exp_probs_b.bias output"),
    ("modern-bert", f"token_embd token_embd_norm output_norm ffn_norm {QKV} {FFN}"),
    ("muse-glimmer", f"{LAYER} {QK} {POST_NORMS} attn_gate {GATED} output"),
    ("nemotron", f"{LAYER} {FFN} {NORM_BIASES} output"),
    ("olmo", f"token_embd {QKV} {GATED}"),
    ("olmo2", f"{ENDS} {QKV} {QK} {POST_NORMS} {GATED} output"),
    ("orion", f"{LAYER} {GATED} {NORM_BIASES} output"),
    ("pangu-embedded", f"{LAYER} {GATED} attn_output.bias"),
    ("phi2", f"{ENDS} attn_norm {QKV} {FFN} output output.bias output_norm.bias attn_norm.bias "
     "attn_output.bias ffn_up.bias ffn_down.bias"),
    ("phimoe", f"{LAYER} {MOE} {NORM_BIASES} attn_output.bias output output.bias"),
    ("plamo", f"{ENDS} attn_norm {QKV} {GATED} output"),
    ("plamo3", f"{LAYER} {QK} {POST_NORMS} {FFN}"),
    ("qwen", f"{LAYER} {GATED} attn_qkv.bias output"),
    ("qwen2moe", f"{LAYER} {MOE} {GATED_SHARED} ffn_gate_inp_shexp output"),
    ("qwen3moe qwen3vlmoe", f"{LAYER} {QK} {MOE}"),
    ("seed_oss", f"{ENDS} attn_norm post_attention_norm {QKV} {GATED}"),
    ("smallthinker", f"{LAYER} {MOE}"),
    ("spark2_5", f"{LAYER} attn_gate {GATED}"),
    ("stablelm", f"{ENDS} attn_norm {QKV} {GATED} attn_norm.bias output output_norm.bias"),
    ("talkie", f"token_embd {QKV} attn_q_norm {GATED} layer_output_scale output"),
)  # fmt: skip

# Layers are of several kinds, or have one sublayer.
_MIXED = (
    ("bailingmoe3", f"{ENDS} attn_norm ffn_norm {KIMI_LATENT} {KIMI_Q} ssm_g_a attn_gate/ssm_a "
     f"{GATED} {MOE} {GATED_SHARED} exp_probs_b.bias"),
    ("deci", f"{ENDS} attention:attn_norm ffn:ffn_norm {QKV} {GATED}"),
    ("falcon-h1", f"{LAYER} {MAMBA} ssm_conv1d.bias {GATED}"),
    ("glm5-next", f"{ENDS} attn_norm ffn_norm {KIMI_LATENT} {KIMI_Q} ssm_f_b ssm_g_a ssm_g_b "
     f"{INDEXER} {INDEXER_NORM} indexer_compressor_gate indexer_compressor_ape {HYPER} {GATED} "
     f"{MOE} {GATED_SHARED} exp_probs_b.bias output"),
    ("granitehybrid", f"{LAYER} {MAMBA} ssm_norm ssm_conv1d.bias {GATED} {EXPERTS} {GATED_SHARED}"),
    ("hrm_text", f"token_embd {QKV} attn_gate {GATED} hrm.z_l_init"),
    ("jamba", f"{LAYER} {MAMBA_1} ssm_conv1d.bias {STEP_NORMS} {GATED} {MOE}"),
    ("kimi-k3", f"{ENDS} attn_norm ffn_norm {KIMI_LATENT} {KIMI_Q} ssm_f_b ssm_g attn_res_score "
     f"ffn_res_score output_res_score {GATED} {MOE} {GATED_SHARED} ffn_routed_down ffn_routed_up "
     "exp_probs_b.bias output"),
    ("kimi-linear", f"{ENDS} attn_norm ffn_norm {KIMI_LATENT} attn_q ssm_f_b ssm_g_a ssm_g_b "
     f"{GATED} {MOE} {SHARED} exp_probs_b.bias output"),
    ("lfm2 lfm2moe", f"token_embd token_embd_norm|output_norm attn_norm ffn_norm {QKV} {QK} "
     f"{CONVOLUTIONS} {GATED} {MOE} exp_probs_b.bias"),
    ("mamba", f"{ENDS} attn_norm {MAMBA_1} ssm_conv1d.bias"),
    ("mamba2", f"{ENDS} attn_norm {MAMBA} ssm_norm ssm_conv1d.bias"),
    ("minimax-01", f"{LAYER} attn_norm_2/attn_q attn_gate/attn_q {EXPERTS}"),
    ("nemotron_h nemotron_h_moe", f"{ENDS} attn_norm {QKV} {MAMBA} ssm_norm ssm_conv1d.bias {FFN}"),
    ("plamo2", f"{LAYER} {QK} {MAMBA_1} {STEP_NORMS} {POST_NORMS} {FFN}"),
    ("qwen35 qwen35moe", f"{ENDS} attn_norm post_attention_norm {DELTA_NET} ssm_alpha ssm_beta "
     f"{GATED} {MOE} {GATED_SHARED} ffn_gate_inp_shexp"),
    ("qwen3next", f"{ENDS} attn_norm post_attention_norm {DELTA_NET} ssm_ba {GATED} {MOE} "
     f"{GATED_SHARED} ffn_gate_inp_shexp"),
    ("qwen4exp", f"token_embd output_hc_norm output_hc_down output_hc_up per_layer_token_embd "
     f"{DELTA_NET} ssm_alpha ssm_beta {BLOCK_INDEXER} {STREAMS} {NGRAMS} {MOE} {GATED_SHARED} "
     "ffn_gate_inp_shexp"),
)  # fmt: skip


class Need(NamedTuple):
    """A tensor that must be there: one of ``names``, unless there is one of ``excuses``."""

    group: str  # of tensors of a layer beside which it is needed; empty: in every layer
    names: tuple[str, ...]
    excuses: tuple[str, ...]


class Needs(NamedTuple):
    ends: tuple[Need, ...]  # outside layers
    layers: tuple[Need, ...]
    ordinary: bool  # every layer has attention and an FFN or experts


# How the names of a group's tensors begin; the first that fits counts.
_GROUPS = {
    "shared": r"ffn_\w+_shexp",
    "chunks": r"ffn_\w+_chexps",
    "experts": r"ffn_(\w+_exps|gate_inp|routed_(up|down))|exp_probs_b",
    "ffn": r"ffn_(up|down|gate)\b",
    "indexer": r"indexer",
    "state": r"ssm_|shortconv",
    "n-grams": r"ple_",
    "compressor": r"attn_compressor",
    "attention": r"attn_(?!norm|output_norm|res_)",
}
_ENDS = re.compile(r"output|token_embd|position_embd|per_layer_token_embd|hrm")


def group_of(name: str) -> str:
    """The group of a layer's tensor, by its name within the layer; empty: none."""
    return next((group for group, begin in _GROUPS.items() if re.match(begin, name)), "")


def needs_of(arch: str) -> Needs:
    """What files of an architecture need; nothing where that is not known."""
    for rows, ordinary in ((_ORDINARY, True), (_MIXED, False)):
        for names, needed in rows:
            if arch in names.split():
                needs = [_read(entry) for entry in needed.split()]
                ends = tuple(need for need in needs if _ENDS.match(need.names[0]))
                return Needs(ends, tuple(need for need in needs if need not in ends), ordinary)
    return Needs((), (), ordinary=False)


def _read(entry: str) -> Need:
    group, _, rest = entry.rpartition(":")
    names, *excuses = rest.split("/")
    return Need(group or group_of(names), tuple(names.split("|")), tuple(excuses))
