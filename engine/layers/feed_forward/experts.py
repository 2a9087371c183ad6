"""A set of experts: their matrices, and what comes out of them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.recording.expert_verbs import Choice
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, Part, TensorSource
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.packing import ROWS


class ExpertsWeights(Struct, frozen=True):
    """All experts' matrices in one each; ``first`` is gate and up paired, or gate and up where
    adapters change what they yield, or up alone. ``scales``: float32 [experts], which a token's
    weights are multiplied with."""

    first: tuple[Linear, ...]
    down: Linear
    scales: Tensor | None = None


def load_experts(
    source: TensorSource, prefix: str, suffix: str, *, weighted_before: bool = False
) -> ExpertsWeights:
    """Gate and up as two tensors, as one, or up alone; and down. Scales beside down become those
    of a token's weights, unless these multiply what the experts read (``weighted_before``)."""
    last = f"{prefix}down{suffix}"
    in_matrix = weighted_before or source.keeps_scales(last) or source.has(f"{last}.bias")
    scales = None if in_matrix else source.floats(f"{last}.scale")

    def parts(name: str, share: int = 0, of: int = 1) -> Sequence[Part]:
        scaled = in_matrix or name != "down"
        return source.experts(f"{prefix}{name}{suffix}", share, of, scaled=scaled)

    if source.has(f"{prefix}gate_up{suffix}.weight"):
        both = [parts("gate_up", 0, 2), parts("gate_up", 1, 2)]
    elif source.has(f"{prefix}gate{suffix}.weight"):
        both = [parts("gate"), parts("up")]
    else:
        both = [parts("up")]
    down = parts("down")
    if scales is not None:
        scales = np.broadcast_to(scales, len(down)).copy()
    if n_more := -both[0][0].n_rows % (ROWS * len(both)):
        both = [[more_rows(part, n_more) for part in some] for some in both]
        down = [_more_columns(part, n_more) for part in down]
    if any(part.updates for some in both for part in some):
        first = tuple(source.expert_linear(some) for some in both)
    else:
        first = (source.expert_linear(*both),)
    return ExpertsWeights(
        first, source.expert_linear(down), None if scales is None else source.upload(scales)
    )


def more_rows(part: Part, n: int) -> Part:
    """An expert, or a head, with n rows of zeros below its own: kernels take 16 rows, of pairs 32,
    at once. In every type of blocks, zeros are values of zero."""
    _check_adapters(part, part.n_rows)
    raw, n_rows = part.raw, part.n_rows + n
    data = np.zeros(n_rows * (raw.data.nbytes // raw.n_rows), np.uint8)
    data[: raw.data.nbytes] = raw.data
    bias = None if part.bias is None else np.pad(part.bias, (0, n))
    return replace(part, raw=replace(raw, data=data, n_rows=n_rows), bias=bias)


def _more_columns(part: Part, n: int) -> Part:
    """An expert that reads n values more, and does not heed them. Its values are floats: other
    types have rows of whole blocks, of which all have a multiple of 32."""
    raw = part.raw
    _check_adapters(part, raw.n_cols)
    columns = raw.data.reshape(raw.n_rows, -1)
    data = np.pad(columns, ((0, 0), (0, n * raw.type.block_bytes))).reshape(-1)
    return replace(part, raw=replace(raw, data=data, n_cols=raw.n_cols + n))


def _check_adapters(part: Part, n: int) -> None:
    if part.updates:
        raise ModelError(f"adapters of experts of {n} values, which is no multiple of 32")


def experts(g: Graph, x: Rows, w: ExpertsWeights, choice: Choice, limit: float) -> Rows:
    """What the chosen experts of each token yield, one row after another."""
    activation = g.h.arch.glu(limit)
    if w.first[0].matrix.paired:
        hidden = g.expert_glu(x, w.first[0], choice, activation, limit)
    else:
        gate, *up = (g.expert_linear(x, part, choice, of_tokens=True) for part in w.first)
        if up:
            hidden = g.gated(gate, up[0], activation, limit)
        else:
            hidden = g.activate(gate, g.h.arch.activation)
    return g.expert_linear(hidden, w.down, choice)
