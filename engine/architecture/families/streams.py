"""Models with several residual streams, or residuals other than a sum."""

from __future__ import annotations

from gguf_serve.engine.architecture.arch import Architecture
from gguf_serve.engine.architecture.keys import (
    CLAMPS,
    EXPERT_SCALE,
    EXPERT_WEIGHTS,
    HYPER_NUMBERS,
    INDEXER_SIZES,
    LATENT_SIZES,
    NGRAM_NUMBERS,
    REQUIRED,
    Always,
    Only,
    may,
    must,
    window,
)
from gguf_serve.engine.architecture.needs import (
    ATTENTION_GATE,
    BLOCK_INDEXER,
    CHOICE_BIAS,
    DECODER,
    DELTA_NET,
    DELTA_RATES,
    EMBEDDING,
    ENDS,
    EXPERTS,
    GLU,
    GLU_EXPERTS,
    GLU_SHARED,
    HYPER,
    INDEXER,
    INDEXER_NORM,
    KIMI_LAYERS,
    KIMI_Q,
    LATENT,
    NGRAMS,
    NORMS,
    OUTPUT,
    OUTPUT_HYPER,
    OUTPUT_STREAMS,
    PER_LAYER_TABLE,
    POST_NORMS,
    QK_NORM,
    QKV,
    QKV_BIASES,
    SHARED_GATE,
    SINKS,
    STREAMS,
    needs,
)

KIND = "several residual streams, or others than a sum"
ROWS = (
    Architecture("gemma3n", DECODER + QK_NORM + POST_NORMS + GLU + PER_LAYER_TABLE +
                 needs("layer", "inp_gate", "proj", "post_norm", "altup_correct_coef",
                 "altup_correct_scale", "altup_predict_coef", "altup_router", "altup_router_norm",
                 "laurel_l", "laurel_r", "laurel_post_norm") + needs("model", "altup_proj",
                 "altup_unembd_proj"),
                 keys=window(5, REQUIRED, base=10000.0) | may("activation_sparsity_scale",
                 "attention.shared_kv_layers") | {"altup.active_idx": Only(0),
                 "attention.scale": Always(1.0), "final_logit_softcapping": 30.0},
                 positions="neox", window_rope_scaled=False, own_kv_layers=20, activation="gelu",
                 sparse_layers=10, scale_embedding=True,
                 quirks={"normed_values", "population_deviation"}),
    Architecture("glm5-next", ENDS + NORMS + KIMI_LAYERS + KIMI_Q + needs("state", "ssm_f_b",
                 "ssm_g_a", "ssm_g_b") + INDEXER + INDEXER_NORM + needs("indexer",
                 "indexer_compressor_gate", "indexer_compressor_ape") + HYPER + GLU + GLU_EXPERTS +
                 GLU_SHARED + CHOICE_BIAS + OUTPUT,
                 keys=EXPERT_WEIGHTS | LATENT_SIZES | INDEXER_SIZES | HYPER_NUMBERS | CLAMPS |
                 must("attention.indexer.kpool", "hyper_connection.sinkhorn_iterations") |
                 may("attention.indexer.types", "attention.layer_norm_epsilon",
                 "kda.gate_lower_bound") |
                 {"attention.indexer.kpool_select_tail": Only(True)},
                 mixed=True, unused=QKV_BIASES, positions="none", scoring="sigmoid",
                 quirks={"negated_decay"}),
    Architecture("hrm_text", EMBEDDING + QKV + ATTENTION_GATE + GLU + needs("model",
                 "hrm.z_l_init"),
                 keys=must("hrm.h_cycles", "hrm.l_cycles", "hrm.layers_per_stack") |
                 may("embedding_scale") | {"hrm.prefix_lm": Only(False)},
                 mixed=True, positions="neox", quirks={"weightless_norms"}),
    Architecture("hy_v4", LATENT + ATTENTION_GATE + SINKS + INDEXER + INDEXER_NORM + HYPER + GLU +
                 GLU_EXPERTS + GLU_SHARED + OUTPUT + OUTPUT_HYPER,
                 keys=EXPERT_WEIGHTS | LATENT_SIZES | HYPER_NUMBERS |
                 must("attention.indexer.types", "hyper_connection.magnitude") |
                 may("attention.indexer.head_count", "attention.indexer.key_length",
                 "attention.indexer.top_k", "swiglu_clamp_exp"),
                 scoring="sigmoid", quirks={"indexer_epsilon", "interleaved_indexer_rope",
                 "indexer_rope_last", "glu_limit_first"}),
    Architecture("kimi-k3", ENDS + NORMS + KIMI_LAYERS + KIMI_Q + needs("state", "ssm_f_b",
                 "ssm_g") + needs("layer", "attn_res_score", "ffn_res_score") + needs("model",
                 "output_res_score") + GLU + GLU_EXPERTS + GLU_SHARED + needs("experts",
                 "ffn_routed_down", "ffn_routed_up") + CHOICE_BIAS + OUTPUT,
                 keys=EXPERT_SCALE | LATENT_SIZES | must("attn_res.block_size",
                 "expert_gating_func") | {"activation.situ_beta": Only(4.0),
                 "activation.situ_linear_beta": Only(25.0)} |
                 may("kda.gate_lower_bound"),
                 mixed=True, unused=QKV_BIASES, positions="none", activation="situ",
                 quirks={"negated_decay"}),
    Architecture("minimax-01", DECODER + needs("layer", "attn_norm_2", unless="attn_q") +
                 needs("attention", "attn_gate", unless="attn_q") + EXPERTS,
                 keys=must("residual_scale") | may("attention.recurrent_layers"),
                 mixed=True, positions="neox", normalize_experts=True,
                 quirks={"lightning_attention", "normed_residuals"}),
    Architecture("qwen4exp", EMBEDDING + OUTPUT_STREAMS + DELTA_NET + DELTA_RATES + BLOCK_INDEXER +
                 STREAMS + NGRAMS + GLU_EXPERTS + GLU_SHARED + SHARED_GATE,
                 keys=INDEXER_SIZES | NGRAM_NUMBERS | must("hyper_connection.count",
                 "rope.dimension_sections", "ssm.state_size") | may("attention.compress_ratios",
                 "attention.recurrent_layers"),
                 mixed=True, unused=QKV_BIASES, positions="neox", sections_interleaved=True,
                 normalize_experts=True, quirks={"sigmoid_delta_gate"}),
)  # fmt: skip
