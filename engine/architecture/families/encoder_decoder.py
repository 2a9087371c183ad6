"""An encoder, and a decoder that attends to what it yields."""

from __future__ import annotations

from gguf_serve.engine.architecture.arch import Architecture
from gguf_serve.engine.architecture.keys import Always, may, must
from gguf_serve.engine.architecture.needs import (
    EMBEDDING,
    ENCODER_OUTPUT_NORM,
    FFN,
    NORMS,
    OUTPUT_NORM,
    QKV,
)

KIND = "an encoder and a decoder"
ROWS = (
    Architecture("t5", EMBEDDING + ENCODER_OUTPUT_NORM + OUTPUT_NORM + NORMS + QKV + FFN,
                 keys=must("attention.relative_buckets_count") |
                 may("decoder_block_count", "decoder_start_token_id") |
                 {"attention.causal": Always(True), "attention.scale": Always(1.0)},
                 stacks=("enc.", "dec."), positions="none", activation="relu",
                 quirks={"gelu_with_gate"}),
)  # fmt: skip
