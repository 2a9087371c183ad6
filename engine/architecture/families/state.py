"""Models with state space, convolution or linear attention, alone or beside attention."""

from __future__ import annotations

from gguf_serve.engine.architecture.arch import Architecture
from gguf_serve.engine.architecture.keys import (
    CLAMPS,
    EXPERT_SCALE,
    LATENT_SIZES,
    Only,
    may,
    must,
)
from gguf_serve.engine.architecture.needs import (
    ATTENTION_NORM,
    CHANNEL_MIX,
    CHOICE_BIAS,
    CONV_BIAS,
    DECODER,
    DELTA_NET,
    DELTA_RATES,
    EMBEDDING,
    ENDS,
    EXPERTS,
    FFN,
    FIRST_VALUE_SHARES,
    GLU,
    GLU_EXPERTS,
    GLU_SHARED,
    KIMI_LAYERS,
    KIMI_Q,
    MAMBA,
    MAMBA_1,
    NORMS,
    OUTPUT,
    POST_ATTENTION_NORM,
    POST_NORMS,
    QK_NORM,
    QKV,
    QKV_BIASES,
    RWKV_6,
    RWKV_7,
    RWKV_ENDS,
    SHARED,
    SHARED_GATE,
    SHORT_CONV,
    STATE_NORM,
    STEP_NORMS,
    TIME_MIX_GATE,
    TIME_MIX_GATE_IF_ANY,
    TIME_MIX_NORM,
    needs,
)

KIND = "state space, convolution or linear attention, alone or beside attention"
ROWS = (
    Architecture("arwkv7", ENDS + NORMS + RWKV_7 + TIME_MIX_GATE_IF_ANY + GLU +
                 OUTPUT,
                 keys=must("wkv.head_size") | {"token_shift_count": Only(1)},
                 mixed=True, unused=FIRST_VALUE_SHARES, positions="none"),
    Architecture("bailingmoe3", ENDS + NORMS + KIMI_LAYERS + KIMI_Q + needs("state", "ssm_g_a") +
                 needs("attention", "attn_gate", unless="ssm_a") + GLU + GLU_EXPERTS + GLU_SHARED +
                 CHOICE_BIAS,
                 keys=EXPERT_SCALE | LATENT_SIZES | CLAMPS | must("expert_gating_func",
                 "kda.gate_lower_bound") | may("rope.dimension_sections"),
                 mixed=True, unused=QKV_BIASES),
    Architecture("falcon-h1", DECODER + MAMBA + CONV_BIAS + GLU, keys=must("ssm.state_size"),
                 mixed=True, unused=("attn_output.bias", "rope_freqs.weight"), positions="neox"),
    Architecture("granitehybrid", DECODER + MAMBA + STATE_NORM + CONV_BIAS + GLU + EXPERTS +
                 GLU_SHARED,
                 keys=must("ssm.state_size") | may("attention.scale", "embedding_scale",
                 "logit_scale", "residual_scale", "rope.scaling.finetuned"),
                 mixed=True, normalize_experts=True, divide_logits=True,
                 quirks={"rope_if_finetuned"}),
    Architecture("jamba", DECODER + MAMBA_1 + CONV_BIAS + STEP_NORMS + GLU + GLU_EXPERTS,
                 keys=must("ssm.state_size"), mixed=True, positions="none"),
    Architecture("kimi-linear", ENDS + NORMS + KIMI_LAYERS + needs("attention", "attn_q") +
                 needs("state", "ssm_f_b", "ssm_g_a", "ssm_g_b") + GLU + GLU_EXPERTS + SHARED +
                 CHOICE_BIAS + OUTPUT,
                 keys=LATENT_SIZES | must("expert_gating_func") | may("expert_weights_scale"),
                 mixed=True, unused=QKV_BIASES, positions="none", normalize_experts=True),
    Architecture("lfm2", EMBEDDING + needs("model", ("token_embd_norm", "output_norm")) + NORMS +
                 QKV + QK_NORM + SHORT_CONV + GLU + GLU_EXPERTS + CHOICE_BIAS,
                 keys=may("attention.sliding_window"),
                 mixed=True, positions="neox", window_all=True),
    Architecture("lfm2moe", EMBEDDING + needs("model", ("token_embd_norm", "output_norm")) + NORMS +
                 QKV + QK_NORM + SHORT_CONV + GLU + GLU_EXPERTS + CHOICE_BIAS,
                 keys=must("expert_gating_func"),
                 mixed=True, positions="neox", window_all=True, normalize_experts=True),
    Architecture("mamba", ENDS + ATTENTION_NORM + MAMBA_1 + CONV_BIAS,
                 keys=must("ssm.state_size") | may("ssm.dt_b_c_rms"), mixed=True, positions="none"),
    Architecture("mamba2", ENDS + ATTENTION_NORM + MAMBA + STATE_NORM + CONV_BIAS,
                 keys=must("ssm.state_size"), mixed=True, positions="none"),
    Architecture("nemotron_h", ENDS + ATTENTION_NORM + QKV + MAMBA + STATE_NORM + CONV_BIAS + FFN,
                 keys=EXPERT_SCALE | must("ssm.state_size", "attention.layer_norm_epsilon") |
                 may("attention.layer_norm_rms_epsilon"),
                 mixed=True, positions="none", activation="relu2", scoring="sigmoid"),
    Architecture("nemotron_h_moe", ENDS + ATTENTION_NORM + QKV + MAMBA + STATE_NORM + CONV_BIAS +
                 FFN + EXPERTS + CHOICE_BIAS + needs("experts", "ffn_up_shexp", "ffn_down_shexp") +
                 needs("latent experts", "ffn_latent_down", "ffn_latent_up"),
                 keys=EXPERT_SCALE | must("ssm.state_size", "attention.layer_norm_epsilon") |
                 may("attention.layer_norm_rms_epsilon"),
                 mixed=True, positions="none", activation="relu2", scoring="sigmoid",
                 quirks={"layer_norm_after_heads"}),
    Architecture("plamo2", DECODER + QK_NORM + MAMBA_1 + STEP_NORMS + POST_NORMS + FFN,
                 keys=must("ssm.state_size"), mixed=True, positions="neox"),
    Architecture("qwen35", ENDS + ATTENTION_NORM + POST_ATTENTION_NORM + DELTA_NET + DELTA_RATES +
                 GLU + GLU_EXPERTS + GLU_SHARED + SHARED_GATE,
                 keys=must("rope.dimension_sections", "ssm.state_size") |
                 may("attention.recurrent_layers"),
                 mixed=True, positions="neox", sections_interleaved=True),
    Architecture("qwen35moe", ENDS + ATTENTION_NORM + POST_ATTENTION_NORM + DELTA_NET +
                 DELTA_RATES + GLU + GLU_EXPERTS + GLU_SHARED + SHARED_GATE,
                 keys=must("rope.dimension_sections", "ssm.state_size") |
                 may("attention.recurrent_layers"),
                 mixed=True, positions="neox", sections_interleaved=True, normalize_experts=True),
    Architecture("qwen3next", ENDS + ATTENTION_NORM + POST_ATTENTION_NORM + DELTA_NET +
                 needs("state", "ssm_ba") + GLU + GLU_EXPERTS + GLU_SHARED + SHARED_GATE,
                 keys=must("ssm.state_size") | may("attention.recurrent_layers"),
                 mixed=True, positions="neox", normalize_experts=True),
    Architecture("rwkv6", RWKV_ENDS + RWKV_6 + needs("layer", "time_mix_first") + TIME_MIX_NORM +
                 needs("layer", ("time_mix_lerp_fused", "time_mix_lerp_w")) +
                 CHANNEL_MIX + needs("layer", "channel_mix_lerp_r", "channel_mix_receptance"),
                 keys=must("wkv.head_size") | may("rescale_every_n_layers") |
                 {"token_shift_count": Only(2)},
                 mixed=True, positions="none", layer_norm=True),
    Architecture("rwkv6qwen2", ENDS + NORMS + RWKV_6 + needs("layer", "time_mix_lerp_fused") + GLU +
                 OUTPUT,
                 keys=must("wkv.head_size") | {"token_shift_count": Only(1)},
                 mixed=True, positions="none"),
    Architecture("rwkv7", RWKV_ENDS + RWKV_7 + TIME_MIX_GATE + TIME_MIX_NORM + CHANNEL_MIX,
                 keys=must("wkv.head_size") | {"token_shift_count": Only(2)},
                 mixed=True, unused=FIRST_VALUE_SHARES, positions="none", layer_norm=True),
)  # fmt: skip
