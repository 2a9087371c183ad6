"""Models that draft for another one, and are not served by themselves (drafts.py)."""

from __future__ import annotations

from gguf_serve.engine.architecture.arch import Architecture
from gguf_serve.engine.architecture.keys import may, must
from gguf_serve.engine.architecture.needs import DECODER, GLU, OUTPUT, needs

ROWS = (
    Architecture("eagle3", DECODER + needs("layer", "attn_norm_2") + GLU + OUTPUT,
                 keys=must("target_layers", "target_hidden_size") |
                 may("norm_before_fc", "norm_before_residual"),
                 quirks={"states_before_norm", "states_in_attention"}),
)  # fmt: skip
