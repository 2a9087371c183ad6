"""How a model knows where its tokens are, as its file says: the kind of positions, and RoPE's base,
scaling, sections and layers."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Architecture, Positions
from gguf_serve.engine.architecture.by_layer import of_layers
from gguf_serve.engine.architecture.rope import RopeScaling, read_rope_scaling
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile

POSITIONS_BY_DEPTH: dict[int, Positions] = {32: "interleaved", 40: "alibi"}
ROPE_STEP = 4  # every so many layers one has no RoPE ("step": the last, "step_first": the first)


def read_positions(gguf: GGUFFile, arch: Architecture, n_layers: int) -> Positions:
    """The kind of positions; of some architectures files of other depths have another."""
    if "positions_by_depth" in arch.quirks:
        return POSITIONS_BY_DEPTH.get(n_layers, arch.positions)
    if arch.positions == "interleaved" and read_rope_sections(gguf):
        return "neox"  # M-RoPE, which for text is RoPE over pairs (i, i + n/2)
    return arch.positions


def read_rope_base(gguf: GGUFFile, head: int) -> float:
    """The base of the frequencies, with ``rope.scaling.alpha`` raised as NTK-aware scaling has it,
    base * alpha^(d / (d-2))."""
    base = gguf.get_float(gguf.arch_key("rope.freq_base"), 10000.0)
    alpha = gguf.get_float(gguf.arch_key("rope.scaling.alpha"), 0.0)
    return base * alpha ** (head / (head - 2)) if alpha > 0 and head > 2 else base


def scaling_of(gguf: GGUFFile, arch: Architecture) -> RopeScaling:
    """How RoPE is stretched, as the file says and the architecture reads it."""
    scaling = read_rope_scaling(
        gguf, arch.yarn_multiplier, one_multiplier="yarn_one_multiplier" in arch.quirks,
        scores=arch.yarn_scores,
    )  # fmt: skip
    without = "yarn_without_magnitude" in arch.quirks
    return replace(scaling, log_multiplier=1.0) if without else scaling


def read_rope_sections(gguf: GGUFFile) -> tuple[int, ...]:
    """How many pairs turn by each of M-RoPE's four positions; () without M-RoPE. ModelError for a
    negative number."""
    sections = gguf.metadata.get(gguf.arch_key("rope.dimension_sections"))
    if not isinstance(sections, np.ndarray) or sections.dtype.kind not in "iu":
        return ()
    padded = [*(int(n) for n in sections), 0, 0, 0, 0][:4]
    if min(padded) < 0:
        key = gguf.arch_key("rope.dimension_sections")
        raise ModelError(f"{gguf.path}: {key} is {padded}, expected 0 or more")
    return tuple(padded) if any(padded) else ()


def read_rope_layers(
    gguf: GGUFFile, arch: Architecture, positions: Positions, windowed: tuple[bool, ...]
) -> tuple[bool, ...]:
    """Which layers have RoPE: by the file's pattern, or the architecture's."""
    layers = range(len(windowed))
    pattern = gguf.metadata.get(gguf.arch_key("attention.rope_pattern"))
    finetuned = bool(gguf.metadata.get(gguf.arch_key("rope.scaling.finetuned"), True))
    if positions not in ("interleaved", "neox") or (
        "rope_if_finetuned" in arch.quirks and not finetuned
    ):
        return (False,) * len(windowed)
    if isinstance(pattern, Iterable) and not isinstance(pattern, str):
        key = gguf.arch_key("attention.rope_pattern")
        return tuple(bool(v) for v in of_layers(gguf, key, list(pattern), len(windowed)))
    if arch.rope_layers == "windowed" and any(windowed):
        return windowed
    if arch.rope_layers == "windowed_or_dense":
        dense = gguf.get_int(gguf.arch_key("leading_dense_block_count"), 0)
        return tuple(windowed[i] or i < dense for i in layers)
    if "chunked_windows" in arch.quirks and not any(windowed):
        return (True,) * len(windowed)
    if arch.rope_layers == "step":
        return tuple((i + 1) % ROPE_STEP != 0 for i in layers)
    if arch.rope_layers == "step_first" and any(windowed):
        return tuple(i % ROPE_STEP != 0 for i in layers)
    return (True,) * len(windowed)
