"""Diffusion models: attention both ways, and a text that is made by filling in masks."""

from __future__ import annotations

from gguf_serve.engine.architecture.arch import Architecture
from gguf_serve.engine.architecture.keys import Always
from gguf_serve.engine.architecture.needs import DECODER, GLU, GLU_EXPERTS, OUTPUT, QK_NORM

KIND = "diffusion: attention both ways, text by denoising"
BOTH_WAYS = {"attention.causal": Always(False)}
ROWS = (
    Architecture("dream", DECODER + GLU, keys=BOTH_WAYS, positions="neox", quirks={"denoises"}),
    Architecture("llada", DECODER + GLU, keys=BOTH_WAYS,
                 unused=("attn_output.bias", "ffn_gate.bias", "ffn_up.bias", "ffn_down.bias"),
                 quirks={"denoises"}),
    Architecture("llada-moe", DECODER + QK_NORM + GLU_EXPERTS + OUTPUT, keys=BOTH_WAYS,
                 positions="neox", quirks={"denoises"}),
    Architecture("rnd1", DECODER + QK_NORM + GLU_EXPERTS, keys=BOTH_WAYS,
                 positions="neox", normalize_experts=True, quirks={"denoises"}),
)  # fmt: skip
