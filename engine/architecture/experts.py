"""What a file says of its experts: how many there are, and how a token's are chosen."""

from __future__ import annotations

from typing import get_args

from gguf_serve.engine.architecture.arch import Architecture, ExpertHyperparameters, Scoring
from gguf_serve.engine.architecture.by_layer import per_layer_floats, per_layer_ints
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile

# By their numbers in files (expert_gating_func).
SCORING: dict[int, Scoring] = dict(enumerate(get_args(Scoring), 1))


def read_experts(gguf: GGUFFile, arch: Architecture, n_layers: int) -> ExpertHyperparameters:
    """Those of a model, from its metadata; ModelError for a scoring function that is not known."""
    key = gguf.arch_key
    n = gguf.get_int(key("expert_count"), 0)
    limits = per_layer_floats(gguf, "swiglu_clamp_exp", n_layers)
    return ExpertHyperparameters(
        n=n,
        used=per_layer_ints(gguf, "expert_used_count", n_layers, (0,) * n_layers),
        groups=(
            gguf.get_int(key("expert_group_count"), 1) or 1,
            gguf.get_int(key("expert_group_used_count"), 1) or 1,
        ),
        scale=gguf.get_float(key("expert_weights_scale"), 0.0) or 1.0,
        scoring=_scoring(gguf, arch),
        normalize=bool(gguf.metadata.get(key("expert_weights_norm"), arch.normalize_experts)),
        limits=limits,
        shared_limits=per_layer_floats(
            gguf,
            "swiglu_clamp_shexp",
            n_layers,
            limits if "glu_limit_of_shared" in arch.quirks else 0.0,
        ),
        chunk=(
            gguf.get_int(key("experts_per_group"), 1),
            gguf.get_float(key("expert_group_scale"), 1.0),
        ),
    )


def _scoring(gguf: GGUFFile, arch: Architecture) -> Scoring:
    kind = gguf.get_int(gguf.arch_key("expert_gating_func"), 0)
    if kind and kind not in SCORING:
        raise ModelError(
            f"{gguf.path}: unknown expert_gating_func {kind}, expected one of {[*SCORING]}"
        )
    return SCORING.get(kind, arch.scoring)
