"""Models that draft for another one, and are not served by themselves (drafts.py)."""

from __future__ import annotations

from gguf_serve.engine.architecture.arch import Architecture
from gguf_serve.engine.architecture.keys import (
    CLAMPS,
    EXPERT_SCALE,
    HYPER_NUMBERS,
    REQUIRED,
    Always,
    may,
    must,
    window,
)
from gguf_serve.engine.architecture.needs import (
    BLOCK_CONVOLUTIONS,
    CHOICE_BIAS,
    DECODER,
    ENCODER_OUTPUT_NORM,
    ENDS,
    GLU,
    GLU_EXPERTS,
    GLU_SHARED,
    HYPER,
    JOINT_KV,
    NORMS,
    OUTPUT,
    OUTPUT_HYPER,
    OUTPUT_NORM,
    POST_NORMS,
    QK_NORM,
    SINKS,
    needs,
)

ROWS = (
    Architecture("dflash", ENCODER_OUTPUT_NORM + OUTPUT_NORM + NORMS + QK_NORM + needs("attention",
                 "attn_q", "attn_k", "attn_output") + GLU + BLOCK_CONVOLUTIONS,
                 keys=must("target_layers") | window(0) | may("attention.scale",
                 "attention.value_scale", "embedding_scale", "final_logit_softcapping",
                 "hidden_activation", "logit_scale"),
                 positions="neox", quirks={"keys_of_states", "scaled_layers"}),
    Architecture("eagle3", DECODER + needs("layer", "attn_norm_2") + GLU + OUTPUT,
                 keys=must("target_layers", "target_hidden_size") |
                 may("norm_before_fc", "norm_before_residual"),
                 layers="drafting", quirks={"states_before_norm"}),
    Architecture("gemma4-assistant", ENDS + NORMS + POST_NORMS + GLU + needs("model", "rope_freqs",
                 "nextn.pre_projection", "nextn.post_projection") + needs("attention", "attn_q",
                 "attn_q_norm", "attn_output") + needs("layer", "layer_output_scale"),
                 keys=window(REQUIRED, REQUIRED, base=10000.0) |
                 {"attention.scale": Always(1.0)},
                 positions="neox", window_rope_scaled=False, activation="gelu",
                 quirks={"keys_of_target", "rope_factors_outside_windows", "scaled_layers"}),
)  # fmt: skip

# Beside rows of the same names: those of files whose drafts have several residual streams
OF_STREAMS = (
    Architecture("dflash", ENCODER_OUTPUT_NORM + OUTPUT_NORM + OUTPUT_HYPER + NORMS + JOINT_KV +
                 SINKS + HYPER + GLU_EXPERTS + GLU_SHARED + CHOICE_BIAS,
                 keys=HYPER_NUMBERS | EXPERT_SCALE | CLAMPS | must("target_layers",
                 "attention.sliding_window", "expert_gating_func",
                 "hyper_connection.sinkhorn_iterations") | may("attention.compress_ratios"),
                 window_all=True, window_rope_scaled=False, quirks={"keys_of_states",
                 "glu_limit_first", "glu_limit_of_shared", "hidden_before_norm"}),
)  # fmt: skip
