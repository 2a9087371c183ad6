"""Verbs of mixtures: which experts a token goes to, their matrices, the sum of what they yield."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from msgspec import Struct, field

from gguf_serve.engine.recording.rows import Emission, Rows
from gguf_serve.engine.recording.tensors import Linear
from gguf_serve.engine.recording.verbs import Verbs
from gguf_serve.kernels.matrix.lowrank import scale_columns
from gguf_serve.kernels.matrix.matmul import RowGroups, glu, matmul
from gguf_serve.kernels.matrix.moe import Routing, RoutingBuffers, TokenExperts, combine, route
from gguf_serve.kernels.opencl.tape import ADAPTED
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.activations import Activations


class Choice(Struct, frozen=True, eq=False):
    """The experts of each token, found on the device, and their ``weights``; ``lists`` are what
    RoutingBuffers has beside these. ``into`` and ``out_of`` are the rows of the experts' first and
    of their last matrices, by the tokens that share a pass over the weights."""

    routing: Routing
    experts: Rows
    weights: Rows
    lists: tuple[Rows, ...]
    into: dict[int, RowGroups] = field(default_factory=dict)
    out_of: dict[int, RowGroups] = field(default_factory=dict)

    @property
    def grouping(self) -> list[Rows]:
        """What matrices of experts read."""
        return [self.weights, *self.lists]


class ExpertVerbs(Verbs):
    """Rows of experts are those of tokens' slots: as many for each token as it has experts."""

    def route(
        self,
        logits: Rows,
        routing: Routing,
        *,
        bias: Tensor | None = None,
        table: Tensor | None = None,
        scales: Tensor | None = None,
        weighted_before: bool = False,
    ) -> Choice:
        """Choose by the router's logits, or a table: int32 [vocabulary, used]. ``scales``: of what
        each expert yields; ``weighted_before``: the weights multiply what the experts read."""
        used, n = routing.used, logits.n
        n_tiles = (self.context.workspace.n_tokens if n is None else n) * used
        experts, *slots = (self.rows(used, dtype=np.int32, n=n) for _ in range(3))
        lists = self.rows(4, dtype=np.int32, n=n_tiles + routing.n_experts), *slots
        choice = Choice(routing, experts, self.rows(used, n=n), lists)

        def run(e: Emission) -> None:
            tile, written = e.tile, [choice.experts, choice.weights, *choice.lists]
            buffers = RoutingBuffers(*map(e.floats, written))
            given = None if table is None else TokenExperts(table, e.inputs.tokens)
            into, choice.out_of[tile] = route(
                e.tape, e.floats(logits), routing, buffers, e.counts, tile=tile,
                bias=bias, table=given, scales=scales,
            )  # fmt: skip
            choice.into[tile] = into.weighted(buffers.weights) if weighted_before else into

        self.launch(run, reads=[logits], writes=[choice.experts, *choice.grouping])
        return choice

    def expert_glu(
        self, x: Rows, pair: Linear, choice: Choice, activation: str, limit: float
    ) -> Rows:
        """activation(gate x) * (up x) of each expert."""
        out = self._glu_rows(pair, choice.routing.used, x.n)

        def run(e: Emission) -> None:
            glu(
                e.tape, pair.matrix, e.operand(x), e.operand(out), e.counts,
                activation=activation, tile=e.tile, bias=pair.bias, limit=limit,
                experts=choice.into[e.tile],
            )  # fmt: skip

        self.launch(
            run, reads=choice.grouping, operands=[(x, pair)], writes=[out], writes_forms=True
        )
        return out

    def expert_linear(
        self, x: Rows, layer: Linear, choice: Choice, *, of_tokens: bool = False
    ) -> Rows:
        """What each expert's matrix yields, with what adapters add to it. x has the rows of slots,
        or those of tokens where this is an expert's first matrix."""
        used = choice.routing.used
        out = self.rows(layer.matrix.n_rows, used, n=x.n)
        low = layer.low_rank
        narrow = self.rows(0 if low is None else low.a.n_rows, used)

        def run(e: Emission) -> None:
            tile, counts = e.tile, e.counts
            rows = (choice.into if of_tokens else choice.out_of)[tile]
            matmul(
                e.tape, layer.matrix, e.operand(x), e.floats(out), counts, tile=tile,
                bias=layer.bias, experts=rows,
            )  # fmt: skip
            scales = None if low is None else e.inputs.adapter_scales
            if low is None or scales is None:
                return
            between = e.floats(narrow)
            with e.tape.only_if(ADAPTED):
                matmul(e.tape, low.a, e.operand(x), between, counts, tile=tile, experts=rows)
                scale_columns(e.tape, between, scales, low.owner, times=used)
                matmul(
                    e.tape, low.b, Activations(narrow.width, between), e.floats(out), counts,
                    tile=tile, add=True, experts=choice.out_of[tile],
                )  # fmt: skip

        adapted = low is not None and self.context.inputs.adapter_scales is not None
        writes = [out, narrow] if adapted else [out]
        self.launch(run, reads=choice.grouping, operands=[(x, layer)], writes=writes)
        return out

    def combine(
        self,
        y: Rows,
        choice: Choice,
        *,
        scale: float,
        weighted: bool = True,
        extra: Rows | None = None,
        gate: Rows | None = None,
        add_to: Rows | None = None,
    ) -> Rows:
        """The sum of what a token's experts yield, by their weights unless these counted before;
        see kernels.matrix.moe.combine."""
        out = add_to or self.rows(y.width, n=y.n)

        def run(e: Emission) -> None:
            target, add = e.target(out, add=add_to is not None)
            combine(
                e.tape, e.floats(y), target, used=choice.routing.used, add=add, scale=scale,
                weights=e.floats(choice.weights) if weighted else None,
                extra=None if extra is None else e.floats(extra),
                gate=None if gate is None else e.floats(gate), by_product=y.value.n_reads == 1,
            )  # fmt: skip

        optional: Sequence[Rows | None] = (extra, gate, choice.weights if weighted else None)
        reads = [y, *(rows for rows in optional if rows is not None)]
        self.launch(run, reads=reads, writes=[out], can_add=True)
        return out
