"""Decoders with latent attention, or one vector that is K and V of all heads."""

from __future__ import annotations

from gguf_serve.engine.architecture.arch import Architecture
from gguf_serve.engine.architecture.keys import (
    CLAMPS,
    EXPERT_SCALE,
    EXPERT_WEIGHTS,
    HYPER_NUMBERS,
    INDEXER_SIZES,
    LATENT_SIZES,
    REQUIRED,
    TEMPERATURE,
    Always,
    may,
    must,
    window,
)
from gguf_serve.engine.architecture.needs import (
    ATTENTION_GATE,
    CHOICE_BIAS,
    COMPRESSOR,
    ENDS,
    FFN,
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
    Architecture("deepseek2", LATENT + GLU + GLU_EXPERTS + GLU_SHARED,
                 keys=EXPERT_WEIGHTS | LATENT_SIZES | TEMPERATURE |
                 may("rope.scaling.yarn_log_multiplier"),
                 yarn_multiplier=10.0, yarn_scores=True, quirks={"yarn_one_multiplier"}),
    Architecture("deepseek32", LATENT + INDEXER + INDEXER_NORM + GLU + GLU_EXPERTS + GLU_SHARED,
                 keys=EXPERT_SCALE | LATENT_SIZES | INDEXER_SIZES | must("expert_gating_func") |
                 may("rope.dimension_sections", "rope.scaling.yarn_log_multiplier"),
                 yarn_multiplier=10.0, yarn_scores=True),
    Architecture("deepseek4", ENDS + OUTPUT + OUTPUT_HYPER + NORMS + JOINT_KV + SINKS + COMPRESSOR +
                 HYPER + GLU_EXPERTS + GLU_SHARED + needs("experts", "exp_probs_b.bias",
                 unless="ffn_gate_tid2eid"),
                 keys=INDEXER_SIZES | HYPER_NUMBERS | must("attention.compress_ratios",
                 "attention.compress_rope_freq_base", "attention.sliding_window",
                 "expert_gating_func", "expert_weights_norm", "expert_weights_scale",
                 "hyper_connection.sinkhorn_iterations") | CLAMPS,
                 window_all=True, window_rope_scaled=False, quirks={"yarn_without_magnitude",
                 "states_before_norm", "glu_limit_first", "glu_limit_of_shared"}),
    Architecture("dots3note", LATENT + needs("attention", "attn_k_norm") + ATTENTION_GATE +
                 INDEXER + INDEXER_NORM + GLU + GLU_EXPERTS + GLU_SHARED + CHOICE_BIAS,
                 keys=window(REQUIRED, REQUIRED, base=REQUIRED) | EXPERT_SCALE | LATENT_SIZES |
                 INDEXER_SIZES | must("attention.indexer.types", "expert_gating_func") |
                 may("attention.key_length_mla_swa", "attention.kv_lora_rank_swa",
                 "attention.value_length_mla_swa", "attention.value_length_mla")),
    Architecture("glm-dsa", LATENT + INDEXER + GLU + GLU_EXPERTS + GLU_SHARED,
                 keys=EXPERT_WEIGHTS | LATENT_SIZES | INDEXER_SIZES |
                 may("attention.indexer.types", "rope.dimension_sections"),
                 yarn_scores=True, scoring="sigmoid", quirks={"interleaved_indexer_rope"}),
    Architecture("minicpm3", LATENT + GLU,
                 keys={"embedding_scale": Always(12.0)},
                 positions="neox", quirks={"minicpm_scales"}),
    Architecture("mistral4", LATENT + GLU + GLU_EXPERTS + GLU_SHARED,
                 keys=EXPERT_WEIGHTS | LATENT_SIZES | TEMPERATURE |
                 may("rope.scaling.yarn_log_multiplier"), yarn_multiplier=10.0, yarn_scores=True),
    Architecture("plm", LATENT + FFN, keys=must("attention.kv_lora_rank"), activation="relu2"),
)  # fmt: skip
