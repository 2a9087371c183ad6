"""A set of experts: their matrices, who goes to which, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.models.step import Context, Step
from engine.tensors import Linear, Part, TensorSource
from kernels.activate import activate
from kernels.matmul import Activations, fuses_quantization, glu, matmul
from kernels.moe import Routing, TokenExperts, combine, route
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True)
class ExpertsWeights:
    """All experts' matrices in one each; ``first`` is gate and up paired, or up alone."""

    first: Linear
    down: Linear


def load_experts(source: TensorSource, prefix: str, suffix: str) -> ExpertsWeights:
    """Gate and up as two tensors, as one, or up alone; and down."""

    def parts(name: str, share: int = 0, of: int = 1) -> Sequence[Part]:
        return source.experts(f"{prefix}{name}{suffix}", share, of)

    if source.has(f"{prefix}gate_up{suffix}.weight"):
        first = source.expert_linear(parts("gate_up", 0, 2), parts("gate_up", 1, 2))
    elif source.has(f"{prefix}gate{suffix}.weight"):
        first = source.expert_linear(parts("gate"), parts("up"))
    else:
        first = source.expert_linear(parts("up"))
    return ExpertsWeights(first, source.expert_linear(parts("down")))


class Experts:
    """Experts with the memory that they need."""

    def __init__(
        self, weights: ExpertsWeights, context: Context, layer: int, routing: Routing, name: str
    ) -> None:
        """``name`` of their memory: that of experts which are used in turn."""
        h, workspace, used = context.h, context.workspace, routing.used
        self._w, self._c, self._routing = weights, context, routing
        self._limit = h.experts.limits[layer]
        self._buffers = workspace.routing(name, routing.n_experts, used)
        self._up = None if weights.first.matrix.paired else workspace.rows(
            f"{name} up", weights.first.matrix.n_rows, used
        )  # fmt: skip
        self._hidden = workspace.activations(
            f"{name} hidden", [weights.down], times=used,
            floats=self._up is None
            and not fuses_quantization(context.device, weights.first.matrix),
        )  # fmt: skip
        self._yield = workspace.rows(f"{name} yield", weights.down.matrix.n_rows, used)

    @property
    def readers(self) -> Sequence[Linear]:
        return (self._w.first,)

    def record(
        self,
        step: Step,
        logits: Tensor,
        bias: Tensor | None,
        x: Activations,
        table: TokenExperts | None = None,
    ) -> None:
        """Choose by the router's logits, or a table of tokens, and run what is chosen."""
        tape, counts, tile = step.tape, self._c.inputs.counts, step.mode.tile
        into, out_of = route(
            tape, logits, self._routing, self._buffers, counts, tile=tile, bias=bias, table=table
        )
        arch, first, down = self._c.h.arch, self._w.first, self._w.down
        if arch.experts_scaled_before:
            into = into.weighted(self._buffers.weights)
        if self._up is None:
            glu(
                tape, first.matrix, x, self._hidden, counts, tile=tile, bias=first.bias,
                activation=arch.glu(self._limit), limit=self._limit,
                experts=into,
            )  # fmt: skip
        else:
            matmul(
                tape, first.matrix, x, self._up, counts, tile=tile, bias=first.bias, experts=into
            )
            activate(
                tape, self._up, self._hidden, activation=arch.activation, times=self._routing.used
            )
        matmul(
            tape, down.matrix, self._hidden, self._yield, counts, tile=tile, bias=down.bias,
            experts=out_of,
        )  # fmt: skip

    def combine(
        self,
        step: Step,
        out: Tensor,
        *,
        add: bool,
        scale: float,
        extra: Tensor | None = None,
        gate: Tensor | None = None,
    ) -> None:
        """The weighted sum of what the experts of a token yield; see kernels.moe.combine."""
        scaled = self._c.h.arch.experts_scaled_before
        combine(
            step.tape, self._yield, out, used=self._routing.used, add=add, extra=extra, gate=gate,
            weights=None if scaled else self._buffers.weights, scale=scale,
        )  # fmt: skip
