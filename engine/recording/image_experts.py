"""Models with other weights for images than for text (CogVLM): two experts, chosen by kind."""

from __future__ import annotations

from gguf_serve.engine.recording.step import Context, Step
from gguf_serve.kernels.matrix.matmul import RowGroups
from gguf_serve.kernels.matrix.moe import Routing, RoutingBuffers, kinds, route, routing_buffers

KINDS = Routing(n_experts=2, used=1)


def rows_by_kind(step: Step, context: Context) -> RowGroups:
    """Which of the step's tokens are text and which are not, found once on each tape."""
    found, key = context.workspace.kinds, (step.tape, step.tape.tokens)
    if key not in found:
        logits = context.workspace.rows("kinds", KINDS.n_experts)
        buffers = context.workspace.constant("kinds", lambda: _buffers(context))
        kinds(step.tape, context.inputs.tokens, logits)
        counts, tile = context.inputs.counts, step.tile
        found[key], _ = route(step.tape, logits, KINDS, buffers, counts, tile=tile)
    return found[key]


def _buffers(context: Context) -> RoutingBuffers:
    n_tokens = context.workspace.n_tokens
    return routing_buffers(context.device, n_tokens, KINDS.n_experts, KINDS.used)
