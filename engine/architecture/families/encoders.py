"""Encoders, for embeddings and ranking."""

from __future__ import annotations

from gguf_serve.engine.architecture.arch import Architecture
from gguf_serve.engine.architecture.keys import REQUIRED, Always, may, must, window
from gguf_serve.engine.architecture.needs import (
    ATTENTION_OUTPUT_BIAS,
    DECODER,
    EMBEDDING,
    EMBEDDING_NORM,
    ENCODER,
    ENCODER_OUTPUT_NORM,
    EXPERTS,
    FFN,
    FFN_NORM,
    GLU,
    LLAMA,
    NORMS,
    OUTPUT_NORM,
    POST_NORMS,
    QK_NORM,
    QKV,
    needs,
)

KIND = "encoders, for embeddings and ranking"
ROWS = (
    Architecture("bert", ENCODER + needs("model", "position_embd"),
                 positions="none", layer_norm=True, layers="norms_after", activation="gelu"),
    Architecture("eurobert", DECODER + GLU, positions="neox"),
    Architecture("gemma-embedding", DECODER + QK_NORM + POST_NORMS + GLU,
                 keys=window(6, REQUIRED, base=10000.0) | {"attention.causal": Always(False)},
                 positions="neox", window_rope_scaled=False, activation="gelu",
                 scale_embedding=True),
    Architecture("jina-bert-v2", ENCODER + needs("model", "token_types") + ATTENTION_OUTPUT_BIAS +
                 needs("ffn", "ffn_down.bias"),
                 positions="alibi", layer_norm=True, layers="norms_after", activation="gelu"),
    Architecture("jina-bert-v3", ENCODER,
                 positions="neox", layer_norm=True, layers="norms_after", activation="gelu"),
    Architecture("llama-embed", LLAMA, normalize_experts=True),
    Architecture("modern-bert", EMBEDDING + EMBEDDING_NORM + OUTPUT_NORM + FFN_NORM + QKV + FFN +
                 needs("later layers", "attn_norm"),
                 keys=window(3, base=10000.0) | may("hidden_activation") |
                 {"classifier.pooling_type": 1},
                 positions="neox", layer_norm=True, activation="gelu", quirks={"window_after_first",
                 "gelu_rank_head"}),
    Architecture("neo-bert", EMBEDDING + ENCODER_OUTPUT_NORM + NORMS + QKV + FFN),
    Architecture("nomic-bert", ENCODER + GLU,
                 positions="neox", layer_norm=True, layers="norms_after"),
    Architecture("nomic-bert-moe", ENCODER + EXPERTS,
                 positions="neox", layer_norm=True, layers="norms_after", activation="gelu"),
    Architecture("t5encoder", EMBEDDING + ENCODER_OUTPUT_NORM + NORMS + QKV + FFN,
                 keys=must("attention.relative_buckets_count") |
                 {"attention.causal": Always(False), "attention.scale": Always(1.0)},
                 stacks=("enc.",), positions="none", activation="relu", quirks={"gelu_with_gate"}),
)  # fmt: skip
