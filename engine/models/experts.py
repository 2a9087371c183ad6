"""A set of experts: their matrices, who goes to which, and what comes out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from engine.models.step import Context, Step
from engine.tensors import Linear, Part, TensorSource
from kernels.activate import activate, activate_glu
from kernels.lowrank import scale_columns
from kernels.matmul import Activations, ExpertRows, fuses_quantization, glu, matmul
from kernels.moe import Routing, TokenExperts, combine, route
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True)
class ExpertsWeights:
    """All experts' matrices in one each; ``first`` is gate and up paired, or gate and up where
    adapters change what they yield, or up alone."""

    first: tuple[Linear, ...]
    down: Linear


def load_experts(source: TensorSource, prefix: str, suffix: str) -> ExpertsWeights:
    """Gate and up as two tensors, as one, or up alone; and down."""

    def parts(name: str, share: int = 0, of: int = 1) -> Sequence[Part]:
        return source.experts(f"{prefix}{name}{suffix}", share, of)

    if source.has(f"{prefix}gate_up{suffix}.weight"):
        both = [parts("gate_up", 0, 2), parts("gate_up", 1, 2)]
    elif source.has(f"{prefix}gate{suffix}.weight"):
        both = [parts("gate"), parts("up")]
    else:
        both = [parts("up")]
    if any(part.updates for some in both for part in some):
        first = tuple(source.expert_linear(some) for some in both)
    else:
        first = (source.expert_linear(*both),)
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
        first = weights.first[0].matrix
        self._parts = () if first.paired else tuple(
            workspace.rows(f"{name} {i}", first.n_rows, used) for i in range(len(weights.first))
        )  # fmt: skip
        self._hidden = workspace.activations(
            f"{name} hidden", [weights.down], times=used,
            floats=first.paired and not fuses_quantization(context.device, first),
        )  # fmt: skip
        self._yield = workspace.rows(f"{name} yield", weights.down.matrix.n_rows, used)

    @property
    def readers(self) -> Sequence[Linear]:
        return self._w.first

    def record(
        self,
        step: Step,
        logits: Tensor,
        bias: Tensor | None,
        x: Activations,
        table: TokenExperts | None = None,
    ) -> None:
        """Choose by the router's logits, or a table of tokens, and run what is chosen."""
        tape, counts, tile = step.tape, self._c.inputs.counts, step.tile
        into, out_of = route(
            tape, logits, self._routing, self._buffers, counts, tile=tile, bias=bias, table=table
        )
        arch, first, down = self._c.h.arch, self._w.first, self._w.down
        if arch.experts_scaled_before:
            into = into.weighted(self._buffers.weights)
        if not self._parts:
            glu(
                tape, first[0].matrix, x, self._hidden, counts, tile=tile, bias=first[0].bias,
                activation=arch.glu(self._limit), limit=self._limit,
                experts=into,
            )  # fmt: skip
        for linear, part in zip(first, self._parts, strict=False):
            self._linear(step, linear, x, part, into, out_of)
        if self._parts:
            self._activate(step)
        self._linear(step, down, self._hidden, self._yield, out_of, out_of)

    def _linear(
        self,
        step: Step,
        weights: Linear,
        x: Activations,
        out: Tensor,
        rows: ExpertRows,
        slots: ExpertRows,
    ) -> None:
        """What each expert's matrix yields, with what adapters add to it."""
        tape, inputs, tile = step.tape, self._c.inputs, step.tile
        matmul(
            tape, weights.matrix, x, out, inputs.counts, tile=tile, bias=weights.bias,
            experts=rows,
        )  # fmt: skip
        low, scales = weights.low_rank, inputs.adapter_scales
        if low is None or scales is None:
            return
        width, used = low.a.n_rows, self._routing.used
        narrow = self._c.workspace.rows("experts low rank", width, used)
        matmul(tape, low.a, x, narrow, inputs.counts, tile=tile, experts=rows)
        scale_columns(tape, narrow, scales, low.owner, times=used)
        matmul(
            tape, low.b, Activations(width, narrow), out, inputs.counts, tile=tile, add=True,
            experts=slots,
        )  # fmt: skip

    def _activate(self, step: Step) -> None:
        arch, used = self._c.h.arch, self._routing.used
        if len(self._parts) == 2:
            activate_glu(
                step.tape, *self._parts, self._hidden, activation=arch.glu(self._limit),
                limit=self._limit, times=used,
            )  # fmt: skip
        else:
            activate(
                step.tape, self._parts[0], self._hidden, activation=arch.activation, times=used
            )

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
