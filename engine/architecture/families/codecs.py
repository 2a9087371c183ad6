"""Decoders of codecs: from codes of a sound to features of its spectrum."""

from __future__ import annotations

from gguf_serve.engine.architecture.arch import Architecture
from gguf_serve.engine.architecture.keys import Always, must
from gguf_serve.engine.architecture.needs import (
    EMBEDDING,
    EMBEDDING_NORM,
    FFN,
    OUTPUT,
    OUTPUT_NORM,
    QKV,
    needs,
)

KIND = "decoders of codecs, from codes to features of a sound"
STACKS = ("posnet.", "convnext.")
ROWS = (
    Architecture("wavtokenizer-dec", EMBEDDING + EMBEDDING_NORM + OUTPUT_NORM + OUTPUT + needs(
                     "model", "conv1d", "conv1d.bias", "token_embd_norm.bias", "output_norm.bias",
                     "output.bias") + QKV + FFN + needs("ffn", "dw", "norm", "norm.bias", "gamma"),
                 keys=must("attention.group_norm_epsilon", "attention.group_norm_groups",
                 "convnext.block_count", "features_length", "posnet.block_count",
                 "posnet.embedding_length") |
                 {"attention.causal": Always(False), "attention.head_count": Always(1)},
                 mixed=True, stacks=STACKS, counted_stacks=STACKS, layers="convolved",
                 embedding_norm=False, projections=("output",), positions="none", layer_norm=True,
                 activation="gelu"),
)  # fmt: skip
