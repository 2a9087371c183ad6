"""Decoders with latent attention, or one vector that is K and V of all heads."""

from __future__ import annotations

from gguf_serve.engine.architecture.arch import Architecture
from gguf_serve.engine.architecture.needs import (
    ATTENTION_GATE,
    CHOICE_BIAS,
    COMPRESSOR,
    ENDS,
    GLU,
    GLU_EXPERTS,
    GLU_SHARED,
    HYPER,
    INDEXER,
    INDEXER_NORM,
    JOINT_KV,
    LATENT,
    NORMS,
    OUTPUT,
    OUTPUT_HYPER,
    SINKS,
    needs,
)

KIND = "latent attention (MLA), or one vector for K and V"
ROWS = (
    # DeepSeek's converter writes a tenth of YaRN's multiplier.
    Architecture("deepseek2", LATENT + GLU + GLU_EXPERTS + GLU_SHARED, yarn_multiplier=10.0,
                 yarn_scores=True, quirks={"yarn_one_multiplier"}),
    Architecture("deepseek32", LATENT + INDEXER + INDEXER_NORM + GLU + GLU_EXPERTS + GLU_SHARED,
                 yarn_multiplier=10.0, yarn_scores=True),
    Architecture("deepseek4", ENDS + OUTPUT + OUTPUT_HYPER + NORMS + JOINT_KV + SINKS + COMPRESSOR +
                 HYPER + GLU_EXPERTS + GLU_SHARED +
                 needs("experts", "exp_probs_b.bias", unless="ffn_gate_tid2eid"),
                 window_all=True, window_rope_scaled=False, quirks={"yarn_without_magnitude",
                 "glu_limit_first", "glu_limit_of_shared"}),
    Architecture("dots3note", LATENT + needs("attention", "attn_k_norm") + ATTENTION_GATE +
                 INDEXER + INDEXER_NORM + GLU + GLU_EXPERTS + GLU_SHARED + CHOICE_BIAS,
                 window_pattern=4),
    Architecture("glm-dsa", LATENT + INDEXER + GLU + GLU_EXPERTS + GLU_SHARED, yarn_scores=True,
                 gate="sigmoid", quirks={"interleaved_indexer_rope"}),
    Architecture("minicpm3", LATENT + GLU, positions="neox", embedding_scale=12.0,
                 quirks={"residuals_by_depth"}),
    Architecture("mistral4", LATENT + GLU + GLU_EXPERTS + GLU_SHARED, yarn_multiplier=10.0,
                 yarn_scores=True),
)  # fmt: skip
