"""Decoders of attention and experts."""

from __future__ import annotations

from gguf_serve.engine.architecture.arch import Architecture
from gguf_serve.engine.architecture.needs import (
    ATTENTION_GATE,
    ATTENTION_NORM,
    ATTENTION_OUTPUT_BIAS,
    BLOCK_INDEXER,
    CHOICE_BIAS,
    DECODER,
    ENDS,
    EXPERT_BIASES,
    EXPERTS,
    FFN_OR_EXPERTS,
    GLU,
    GLU_EXPERTS,
    GLU_SHARED,
    LLAMA,
    NORM_BIASES,
    OUTPUT,
    POST_ATTENTION_NORM,
    POST_NORMS,
    QK_NORM,
    QKV,
    QKV_BIASES,
    SHARED,
    SHARED_GATE,
    SINKS,
    needs,
)

KIND = "attention and experts"
ROWS = (
    Architecture("afmoe", DECODER + QK_NORM + POST_NORMS + ATTENTION_GATE + GLU + GLU_EXPERTS +
                 GLU_SHARED + CHOICE_BIAS,
                 positions="neox", rope_layers="step", window_pattern=4, gate="sigmoid",
                 scale_embedding=True),
    Architecture("arctic", DECODER + needs("experts", "ffn_norm_exps") + GLU + GLU_EXPERTS,
                 normalize_experts=True, quirks={"early_experts", "dense_beside_experts"}),
    Architecture("bailingmoe", DECODER + GLU + GLU_EXPERTS + GLU_SHARED + OUTPUT),
    Architecture("bailingmoe2", DECODER + QK_NORM + GLU + GLU_EXPERTS + GLU_SHARED + OUTPUT,
                 positions="neox"),
    Architecture("cohere2moe", ENDS + ATTENTION_NORM + QKV + GLU + EXPERTS + GLU_SHARED,
                 rope_layers="windowed_or_dense", window_pattern=4, gate="sigmoid", ffn_scale=0.5,
                 quirks={"window_after_first"}),
    Architecture("dbrx", ENDS + ATTENTION_NORM + needs("layer", "attn_output_norm") + QKV +
                 GLU_EXPERTS + OUTPUT, positions="neox", layer_norm=True, normalize_experts=True),
    Architecture("deepseek", DECODER + GLU + GLU_EXPERTS + GLU_SHARED),
    Architecture("dots1", DECODER + QK_NORM + GLU + GLU_EXPERTS + GLU_SHARED + OUTPUT,
                 positions="neox"),
    Architecture("ernie4_5-moe", LLAMA, unused=("attn_output.bias",), normalize_experts=True),
    Architecture("exaone-moe", DECODER + QK_NORM + GLU + GLU_EXPERTS + GLU_SHARED + OUTPUT,
                 positions="neox", rope_layers="windowed", window_pattern=4, window_default=128),
    Architecture("glm4moe", ENDS + ATTENTION_NORM + POST_ATTENTION_NORM + QKV + GLU + GLU_EXPERTS +
                 GLU_SHARED + CHOICE_BIAS, positions="neox", gate="sigmoid"),
    Architecture("gpt-oss", ENDS + ATTENTION_NORM + POST_ATTENTION_NORM + QKV + SINKS +
                 ATTENTION_OUTPUT_BIAS + GLU_EXPERTS + EXPERT_BIASES + OUTPUT,
                 positions="neox", window_pattern=2, activation="swiglu_oai",
                 gate="softmax_chosen"),
    Architecture("granitemoe", LLAMA, normalize_experts=True, divide_logits=True),
    Architecture("grok", DECODER +
                 needs("layer", "attn_output_norm", ("layer_output_norm", "post_ffw_norm")) +
                 EXPERTS + needs("ffn", "ffn_down", ("ffn_up", "ffn_down")),  # may be dense
                 positions="neox", attention_scale=0.08838834764831845, attention_softcap=30.0,
                 activation="gelu", normalize_experts=True, ffn_scale=0.5**0.5,
                 embedding_scale=78.38367176906169, logit_scale=0.5773502691896257,
                 quirks={"dense_beside_experts"}),
    Architecture("grovemoe", DECODER + QK_NORM + GLU_EXPERTS +
                 needs("chunks", "ffn_gate_chexps", "ffn_up_chexps", "ffn_down_chexps"),
                 positions="neox", normalize_experts=True),
    Architecture("hunyuan-moe", DECODER + QK_NORM + GLU_EXPERTS + GLU_SHARED, positions="neox",
                 head_norm_after_rope=True, normalize_experts=True),
    Architecture("hy_v3", DECODER + QK_NORM + FFN_OR_EXPERTS + SHARED, positions="neox",
                 gate="sigmoid"),
    Architecture("laguna", DECODER + QK_NORM + ATTENTION_GATE + GLU + GLU_EXPERTS + GLU_SHARED +
                 CHOICE_BIAS,
                 positions="neox", window_pattern=4, window_rope_scaled=False, gate="sigmoid",
                 quirks={"window_after_first", "softplus_attention_gate"}),
    Architecture("llama4", DECODER + GLU + GLU_EXPERTS + GLU_SHARED, rope_layers="step",
                 window_pattern=4, window_default=8192, head_norm_after_rope=True, gate="sigmoid",
                 quirks={"chunked_windows", "weightless_head_norms", "experts_scaled_before"}),
    Architecture("maple", DECODER + QK_NORM + GLU_EXPERTS + OUTPUT, positions="neox",
                 rope_layers="windowed", window_pattern=4, normalize_experts=True,
                 quirks={"glu_limit_first"}),
    Architecture("mellum", DECODER + QK_NORM + GLU_EXPERTS + OUTPUT, positions="neox",
                 window_pattern=4, window_rope_scaled=False, normalize_experts=True),
    Architecture("mimo2", DECODER + FFN_OR_EXPERTS + OUTPUT, unused=QKV_BIASES, positions="neox",
                 window_pattern=4, window_rope_base=10000.0, window_rope_scaled=False,
                 gate="sigmoid", normalize_experts=True),
    Architecture("minimax-m2", DECODER + QK_NORM + GLU_EXPERTS + CHOICE_BIAS + OUTPUT,
                 positions="neox", normalize_experts=True),
    Architecture("minimax-m3", DECODER + QK_NORM + BLOCK_INDEXER + GLU + GLU_EXPERTS + GLU_SHARED +
                 CHOICE_BIAS + OUTPUT, positions="neox", activation="swiglu_oai"),
    Architecture("olmoe", DECODER + QK_NORM + GLU_EXPERTS + OUTPUT, positions="neox"),
    Architecture("phimoe", DECODER + GLU_EXPERTS + NORM_BIASES + ATTENTION_OUTPUT_BIAS + OUTPUT +
                 needs("model", "output.bias"), positions="neox", normalize_experts=True),
    Architecture("qwen2moe", DECODER + GLU_EXPERTS + GLU_SHARED + SHARED_GATE + OUTPUT,
                 positions="neox"),
    Architecture("qwen3moe", DECODER + QK_NORM + GLU_EXPERTS, positions="neox",
                 normalize_experts=True),
    Architecture("qwen3vlmoe", DECODER + QK_NORM + GLU_EXPERTS, positions="neox",
                 sections_interleaved=True, normalize_experts=True),
    Architecture("smallthinker", DECODER + GLU_EXPERTS, positions="neox", rope_layers="step_first",
                 window_pattern=4, activation="relu", normalize_experts=True,
                 quirks={"window_after_first", "early_router"}),
)  # fmt: skip
