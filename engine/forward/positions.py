"""Positions of tokens for M-RoPE (https://arxiv.org/abs/2409.12191): four numbers for each.

The place of a token in its sequence, which says what attention sees and where K and V go, is
another thing: an image has many tokens, but takes only as many positions as its longer side.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.request import Grid, Request


def grids_of(request: Request) -> Sequence[Grid]:
    """Those of a request's images; sounds count on as text does."""
    if request.grids:
        return request.grids
    images = [span for span in request.media if span.input.ndim == 3]
    return [
        Grid(span.start, span.grid[1], span.grid[0], marks=span.marks, number=i)
        for i, span in enumerate(images)
        if span.marks or span.grid[0] * span.grid[1] == span.count
    ]


def positions(grids: Sequence[Grid], start: int, count: int) -> npt.NDArray[np.int32]:
    """Time, row, column and 0 of tokens [start, start + count): int32 [count, 4].

    Text counts on with the same number in all four. ``grids`` do not overlap and are in order.
    """
    tokens = np.arange(start, start + count)
    result = np.repeat(tokens[:, None], 4, axis=1)
    saved = 0  # tokens that took no position of their own
    for grid in grids:
        if grid.marks:
            _place_marked(result, tokens, grid)
            continue
        inside, after = (tokens >= grid.start) & (tokens < grid.end), tokens >= grid.end
        at = tokens[inside] - grid.start
        size = grid.rows * grid.columns
        parts = at // size, at // grid.columns % grid.rows, at % grid.columns
        result[inside, :3] = np.stack(parts, axis=1) + grid.start - saved
        result[inside, 3] = 0
        saved += grid.end - grid.start - grid.n_positions
        result[after] = tokens[after, None] - saved
    return result.astype(np.int32)


def _place_marked(result: npt.NDArray[np.intp], tokens: npt.NDArray[np.intp], grid: Grid) -> None:
    """Of an image with marks the rows' tokens count on in the first number; the others are
    their column, their row, and the image's number."""
    inside = (tokens > grid.start) & (tokens < grid.end - 1)
    row, column = np.divmod(tokens[inside] - grid.start - 1, grid.columns + 1)
    result[inside, 1:] = np.stack([column, row, np.full_like(row, grid.number)], axis=1)
