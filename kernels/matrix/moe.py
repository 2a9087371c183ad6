"""Mixture of experts (moe.cl): the choice of experts, their tiles, the sum of their outputs.

All of it is found out on the device, so that a recording holds for any routing: grids are
as large as the worst case, and tiles that are not needed return at once.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.kernels.matrix.matmul import RowGroups
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.tape import TOKENS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor, empty
from gguf_serve.kernels.quantization.packing import ROWS

SORT_GROUP = 256
ROUTE_GROUP = 64
Scoring = Literal["softmax", "sigmoid", "softmax_chosen", "sqrt_softplus"]


class Routing(Struct, frozen=True):
    """How the router's logits become a choice of experts and their weights."""

    n_experts: int
    used: int
    scoring: Scoring = "softmax"
    normalize: bool = False  # the weights of a token's experts add up to 1
    scale: float = 1.0  # of the weights
    divide: int = 1  # so many neighbours are one expert, though they are chosen one by one
    groups: tuple[int, int] = (1, 1)  # groups of experts, and how many of them take part

    @property
    def counts(self) -> list[str]:
        return [f"N_EXPERTS={self.n_experts}", f"USED={self.used}"]

    @property
    def defines(self) -> list[str]:
        chosen = self.scoring == "softmax_chosen"
        names = self.counts
        names.append("SOFTMAX_CHOSEN" if chosen else f"GATE_{self.scoring.upper()}")
        names += ["NORMALIZE"] * self.normalize
        names += [f"DIVIDE={self.divide}"] if self.divide > 1 else []
        if self.groups[0] > 1:
            names += [f"N_GROUPS={self.groups[0]}", f"USED_GROUPS={self.groups[1]}"]
        return names


class RoutingBuffers(Struct, frozen=True):
    """experts: int32 [n * used]; weights: float32 of the same; and what RowGroups has."""

    experts: Tensor
    weights: Tensor
    tiles: Tensor
    rows: Tensor
    slots: Tensor


class TokenExperts(Struct, frozen=True):
    """experts: int32 [vocabulary, used]; ids: int32 [n], the tokens of a step."""

    experts: Tensor
    ids: Tensor


def routing_buffers(device: Device, n_tokens: int, n_experts: int, used: int) -> RoutingBuffers:
    """Room for up to ``n_tokens`` tokens."""
    n = n_tokens * used
    return RoutingBuffers(
        experts=empty(device, (n,), np.int32),
        weights=empty(device, (n,)),
        tiles=empty(device, (n + n_experts, 4), np.int32),
        rows=empty(device, (n,), np.int32),
        slots=empty(device, (n,), np.int32),
    )


def route(
    tape: Tape,
    logits: Tensor,
    routing: Routing,
    buffers: RoutingBuffers,
    counts: Tensor,
    *,
    tile: int,
    bias: Tensor | None = None,
    table: TokenExperts | None = None,
    scales: Tensor | None = None,
) -> tuple[RowGroups, RowGroups]:
    """Choose each token's experts from logits, float32 [n, n_experts], or take those that the
    token has in ``table``; their weights come from the logits in any case, and are multiplied with
    ``scales``, float32 [n_experts], in the end.

    Returns the rows for the first matrices of the experts (tokens to slots) and for the last
    ones (slots to slots).
    """
    single = tile == 1
    args: dict[str, object] = {
        "logits": logits, "bias": bias, "scales": scales, "scale": routing.scale,
        "experts": buffers.experts, "weights": buffers.weights,
    }  # fmt: skip
    if table is not None:
        args |= {"table": table.experts, "ids": table.ids}
    if single:
        args |= {"tiles": buffers.tiles, "rows": buffers.rows, "slots": buffers.slots}
    group = tape.device.group(min(ROUTE_GROUP, routing.n_experts))
    defines = [*routing.defines, f"WG={group}"]
    tape.add("matrix/moe.cl", "route", defines, args, (Per(TOKENS, 1, group),), (group,))
    if not single:
        _sort(tape, routing, buffers, counts, tile)
    grid = Per(TOKENS, 1, routing.used) if single else _most_tiles(routing, tile)
    first = RowGroups(buffers.tiles, buffers.rows, buffers.slots, grid, routing.used)
    return first, RowGroups(buffers.tiles, buffers.slots, buffers.slots, grid, routing.used)


def kinds(tape: Tape, ids: Tensor, logits: Tensor) -> None:
    """logits[t] = (1, 0) for a token, (0, 1) for an encoder's embedding, whose id is negative."""
    defines = [*Routing(2, 1).defines, "WG=1"]
    tape.add("matrix/moe.cl", "kinds", defines, {"ids": ids, "logits": logits}, (Per(TOKENS),))


def _most_tiles(routing: Routing, tile: int) -> Per:
    """Enough tiles for any routing: whole ones, and one that is not full per expert."""
    return Per(TOKENS, tile, routing.used, routing.n_experts)


def _sort(tape: Tape, routing: Routing, buffers: RoutingBuffers, counts: Tensor, tile: int) -> None:
    group = tape.device.group(SORT_GROUP)
    defines = [*routing.counts, f"WG={group}", f"TILE={tile}"]
    args = {
        "counts": counts, "count_at": TOKENS, "experts": buffers.experts, "tiles": buffers.tiles,
        "max_tiles": buffers.tiles.shape[0], "rows": buffers.rows, "slots": buffers.slots,
    }  # fmt: skip
    tape.add("matrix/moe.cl", "sort", defines, args, (group,), (group,))


def combine(
    tape: Tape,
    y: Tensor,
    out: Tensor,
    *,
    weights: Tensor | None = None,
    extra: Tensor | None = None,
    gate: Tensor | None = None,
    used: int = 1,
    scale: float = 1.0,
    add: bool = False,
    by_product: bool = False,
) -> None:
    """out[t] (+)= scale * (sum_k weights[t, k] y[t, k] + extra[t] * sigmoid(gate[t])).

    y: float32 [n * used, n_cols]; weights: [n * used]; extra: [n, n_cols], a branch that every
    token takes; gate: [n, 1]. ``by_product``: of one token the product that yields y may do this,
    and leave nothing of y.
    """
    plain = by_product and add and scale == 1.0 and extra is None and gate is None
    if plain and weights is not None and _sums_product(tape, y, weights, used, out):
        return
    n_cols = out.shape[-1]
    args = {
        "y": y, "weights": weights, "extra": extra, "gate": gate, "used": used, "n_cols": n_cols,
        "scale": scale, "out": out,
    }  # fmt: skip
    grid = (-(-n_cols // 16), Per(TOKENS))
    tape.add("matrix/moe.cl", "combine", ["ADD"] * add, args, grid)


def _sums_product(tape: Tape, y: Tensor, weights: Tensor, used: int, out: Tensor) -> bool:
    """Have the product that has just written what a token's experts yield add it up, if it can.

    It adds to ``out``, which therefore is not memory that the product reads.
    """
    last, n_cols = tape.extensible, out.shape[-1]
    if last is None or last.writes is None or last.writes.buffer is not y.buffer:
        return False
    if last.slots != used or "tiles" not in last.args or n_cols % ROWS:
        return False
    ranges, tiles = last.grid
    assert isinstance(ranges, int)
    one = replace(tiles, times=1) if isinstance(tiles, Per) else 1
    args = {"shares": weights, "sums": y, "out": out}
    grid = min(ranges * used, n_cols // ROWS), one
    tape.extend([f"SUMMED={used}", "ADD"], args, grid=grid, writes=out)
    return True
