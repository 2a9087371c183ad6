"""Linear layers as the model's parts record them: a matrix, and what adapters add to it."""

from __future__ import annotations

from gguf_serve.engine.recording.image_experts import rows_by_kind
from gguf_serve.engine.recording.step import Context, Step
from gguf_serve.engine.recording.tensors import Linear, LowRankMatrices
from gguf_serve.kernels.matrix.embed import embed
from gguf_serve.kernels.matrix.lowrank import scale_columns
from gguf_serve.kernels.matrix.matmul import matmul
from gguf_serve.kernels.opencl.tape import OUTPUTS
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.activations import Activations


def linear(
    step: Step,
    context: Context,
    weights: Linear,
    x: Activations,
    out: Tensor,
    *,
    add: bool = False,
    scale: float = 1.0,
    offset: int = 0,
) -> None:
    """out[t, offset:] (+)= (W x[t] + bias) * scale for the step's tokens, with the updates of
    the adapters that are loaded: two narrow products more. A matrix with a second one for images
    takes each token through its own."""
    counts, tile = context.inputs.counts, step.tile
    by_kind = weights.matrix.n_experts > 1
    matmul(
        step.tape, weights.matrix, x, out, counts, tile=tile, add=add, bias=weights.bias,
        out_offset=offset, scale=scale, experts=rows_by_kind(step, context) if by_kind else None,
    )  # fmt: skip
    low, scales = weights.low_rank, context.inputs.adapter_scales
    if low is None or scales is None:
        return
    width = low.a.n_rows
    narrow = context.workspace.rows("low rank", width)
    matmul(step.tape, low.a, x, narrow, counts, tile=tile)
    scale_columns(step.tape, narrow, scales, low.owner)
    matmul(
        step.tape, low.b, Activations(width, narrow), out, counts, tile=tile, add=True,
        out_offset=offset, scale=scale,
    )  # fmt: skip


def adapt_embeddings(
    step: Step, context: Context, low: LowRankMatrices | None, out: Tensor, scale: float
) -> None:
    """out[t] += b a[token] * scale, for tokens and not for media."""
    inputs = context.inputs
    if low is None or inputs.adapter_scales is None:
        return
    width = low.a.n_cols
    narrow = context.workspace.rows("low rank", width)
    embed(step.tape, low.a, inputs.tokens, narrow, tokens_only=True)
    scale_columns(step.tape, narrow, inputs.adapter_scales, low.owner)
    matmul(
        step.tape, low.b, Activations(width, narrow), out, inputs.counts, tile=step.tile,
        add=True, scale=scale,
    )  # fmt: skip


def adapt_outputs(
    step: Step,
    context: Context,
    low: LowRankMatrices | None,
    x: Activations,
    out: Tensor,
    scale: float,
) -> None:
    """out[i] += b a x[i] * scale for a step's outputs."""
    inputs, tile = context.inputs, step.mode.output_tile
    if low is None or inputs.row_scales is None:
        return
    width = low.a.n_rows
    narrow = context.workspace.rows("low rank", width)
    matmul(step.tape, low.a, x, narrow, inputs.counts, tile=tile, count=OUTPUTS)
    scale_columns(step.tape, narrow, inputs.row_scales, low.owner, count=OUTPUTS)
    matmul(
        step.tape, low.b, Activations(width, narrow), out, inputs.counts, tile=tile,
        count=OUTPUTS, add=True, scale=scale,
    )  # fmt: skip
