"""Models with state space, convolution or linear attention, alone or beside attention."""

from __future__ import annotations

from gguf_serve.engine.architecture.arch import Architecture
from gguf_serve.engine.architecture.needs import (
    ATTENTION_NORM,
    CHOICE_BIAS,
    CONV_BIAS,
    DECODER,
    DELTA_NET,
    DELTA_RATES,
    EMBEDDING,
    ENDS,
    EXPERTS,
    FFN,
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
    SHARED,
    SHARED_GATE,
    SHORT_CONV,
    STATE_NORM,
    STEP_NORMS,
    needs,
)

KIND = "state space, convolution or linear attention, alone or beside attention"
ROWS = (
    Architecture("bailingmoe3", ENDS + NORMS + KIMI_LAYERS + KIMI_Q + needs("state", "ssm_g_a") +
                 needs("attention", "attn_gate", unless="ssm_a") + GLU + GLU_EXPERTS + GLU_SHARED +
                 CHOICE_BIAS, mixed=True, unused=QKV_BIASES),
    Architecture("falcon-h1", DECODER + MAMBA + CONV_BIAS + GLU, mixed=True,
                 unused=("attn_output.bias", "rope_freqs.weight"), positions="neox"),
    Architecture("granitehybrid", DECODER + MAMBA + STATE_NORM + CONV_BIAS + GLU + EXPERTS +
                 GLU_SHARED,
                 mixed=True, normalize_experts=True, divide_logits=True,
                 quirks={"rope_if_finetuned"}),
    Architecture("jamba", DECODER + MAMBA_1 + CONV_BIAS + STEP_NORMS + GLU + GLU_EXPERTS,
                 mixed=True, positions="none"),
    Architecture("kimi-linear", ENDS + NORMS + KIMI_LAYERS + needs("attention", "attn_q") +
                 needs("state", "ssm_f_b", "ssm_g_a", "ssm_g_b") + GLU + GLU_EXPERTS + SHARED +
                 CHOICE_BIAS + OUTPUT,
                 mixed=True, unused=QKV_BIASES, positions="none", normalize_experts=True),
    Architecture("lfm2", EMBEDDING + needs("model", ("token_embd_norm", "output_norm")) + NORMS +
                 QKV + QK_NORM + SHORT_CONV + GLU + GLU_EXPERTS + CHOICE_BIAS,
                 mixed=True, positions="neox", window_all=True),
    Architecture("lfm2moe", EMBEDDING + needs("model", ("token_embd_norm", "output_norm")) + NORMS +
                 QKV + QK_NORM + SHORT_CONV + GLU + GLU_EXPERTS + CHOICE_BIAS,
                 mixed=True, positions="neox", window_all=True, normalize_experts=True),
    Architecture("mamba", ENDS + ATTENTION_NORM + MAMBA_1 + CONV_BIAS, mixed=True,
                 positions="none"),
    Architecture("mamba2", ENDS + ATTENTION_NORM + MAMBA + STATE_NORM + CONV_BIAS, mixed=True,
                 positions="none"),
    Architecture("nemotron_h", ENDS + ATTENTION_NORM + QKV + MAMBA + STATE_NORM + CONV_BIAS + FFN,
                 mixed=True, positions="none", activation="relu2", gate="sigmoid"),
    Architecture("nemotron_h_moe", ENDS + ATTENTION_NORM + QKV + MAMBA + STATE_NORM + CONV_BIAS +
                 FFN, mixed=True, positions="none", activation="relu2", gate="sigmoid"),
    Architecture("plamo2", DECODER + QK_NORM + MAMBA_1 + STEP_NORMS + POST_NORMS + FFN, mixed=True,
                 positions="neox"),
    Architecture("qwen35", ENDS + ATTENTION_NORM + POST_ATTENTION_NORM + DELTA_NET + DELTA_RATES +
                 GLU + GLU_EXPERTS + GLU_SHARED + SHARED_GATE,
                 mixed=True, positions="neox", sections_interleaved=True),
    Architecture("qwen35moe", ENDS + ATTENTION_NORM + POST_ATTENTION_NORM + DELTA_NET +
                 DELTA_RATES + GLU + GLU_EXPERTS + GLU_SHARED + SHARED_GATE,
                 mixed=True, positions="neox", sections_interleaved=True, normalize_experts=True),
    Architecture("qwen3next", ENDS + ATTENTION_NORM + POST_ATTENTION_NORM + DELTA_NET +
                 needs("state", "ssm_ba") + GLU + GLU_EXPERTS + GLU_SHARED + SHARED_GATE,
                 mixed=True, positions="neox", normalize_experts=True),
)  # fmt: skip
