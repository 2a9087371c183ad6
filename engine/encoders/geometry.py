"""Where patches are: their order, their learned and rotary positions, how grids are resized.

Grids are (rows, columns) of patches; patches are numbered row by row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
Doubles = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int32]
Grid = tuple[int, int]


def patch_rows(image: Floats, patch: int) -> Floats:
    """[patches, 3 * patch * patch], channel by channel, of an image [height, width, 3]."""
    rows, columns = image.shape[0] // patch, image.shape[1] // patch
    cells = image.reshape(rows, patch, columns, patch, 3).transpose(0, 2, 4, 1, 3)
    return np.ascontiguousarray(cells).reshape(rows * columns, 3 * patch * patch)


def channels_last(image: Floats, patch: int) -> Floats:
    """As patch_rows, pixel by pixel."""
    cells = patch_rows(image, patch).reshape(-1, 3, patch * patch)
    return np.ascontiguousarray(cells.swapaxes(1, 2)).reshape(len(cells), -1)


def pixel_rows(image: Floats, patch: int) -> Floats:
    """[pixels, 3], row by row, of an image [height, width, 3]."""
    return np.ascontiguousarray(image).reshape(-1, 3)


def coordinates(grid: Grid) -> tuple[Ints, Ints]:
    """Row and column of each patch."""
    rows, columns = np.indices(grid, np.int32)
    return rows.reshape(-1), columns.reshape(-1)


def squares(grid: Grid, side: int) -> Ints:
    """[squares, side * side]: the patches of each square of side by side, row by row."""
    numbers = np.arange(grid[0] * grid[1], dtype=np.int32).reshape(
        grid[0] // side, side, grid[1] // side, side
    )
    return numbers.transpose(0, 2, 1, 3).reshape(-1, side * side)


def windows(grid: Grid, side: int) -> tuple[Ints, list[int]]:
    """(cells by window, row by row, and the size of each window), windows of side by side cells
    cut off at the right and lower edge."""
    numbers = np.arange(grid[0] * grid[1], dtype=np.int32).reshape(grid)
    cells = [
        numbers[y : y + side, x : x + side].reshape(-1)
        for y in range(0, grid[0], side)
        for x in range(0, grid[1], side)
    ]
    return np.concatenate(cells), [len(window) for window in cells]


def under_kernel(
    grid: Grid, kernel: int, stride: int = 1, *, same: bool = False, planes: int = 1
) -> tuple[Ints, Grid]:
    """[rows of the output, kernel * kernel], what lies under a square kernel in each of several
    planes, -1 outside; and the grid of one plane of the output.

    Padded evenly by (kernel - 1) / 2, or with ``same`` as little as TensorFlow does, at the end
    first.
    """
    before = [(kernel - 1) // 2] * 2
    out = [(side + 2 * before[0] - kernel) // stride + 1 for side in grid]
    if same:
        out = [-(-side // stride) for side in grid]
        needed = ((n - 1) * stride + kernel for n in out)
        before = [max(n - side, 0) // 2 for n, side in zip(needed, grid, strict=True)]
    numbers = np.arange(planes * grid[0] * grid[1], dtype=np.int32).reshape(planes, *grid)
    edges = [(0, 0), *((n, kernel) for n in before)]
    padded = np.pad(numbers, edges, constant_values=-1)
    taps = [
        padded[:, dy : dy + stride * out[0] : stride, dx : dx + stride * out[1] : stride][
            :, : out[0], : out[1]
        ].reshape(-1)
        for dy in range(kernel)
        for dx in range(kernel)
    ]
    return np.stack(taps, axis=1), (out[0], out[1])


# --- rotary positions: angles are [patches, head / 2], one for each pair of values ---


def by_place(places: npt.NDArray[Any], head: int, base: float) -> Doubles:
    """All pairs turn by one coordinate, pair i with the frequency base^(-2i / head)."""
    return places[:, None] * float(base) ** (-2 * np.arange(head // 2) / head)


def by_halves(first: Ints, second: Ints, head: int, base: float, shift: bool = False) -> Doubles:
    """The first half of the pairs turns by one coordinate, the second half by the other.

    Pair i of a half has the frequency base^(-2i / (head / 2)); with ``shift`` those of the
    second half are base^(-2 / head) times that (Pixtral: the odd ones of head / 2 frequencies).
    """
    n = head // 4
    frequencies = float(base) ** (-2.0 * np.arange(n) / (2 * n))
    others = frequencies * float(base) ** (-2.0 / head) if shift else frequencies
    return np.concatenate([first[:, None] * frequencies, second[:, None] * others], axis=1)


def rotation(angles: Doubles) -> Floats:
    """cos and sin, float32 [patches, 2, head / 2]."""
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


# --- learned positions: tables are [rows, columns, width] ---


def resized(table: Floats, grid: Grid, kernel: Callable[[int, int], Doubles]) -> Floats:
    """A table at another size, flat [patches, width]; ``kernel`` gives each axis's weights."""
    if table.shape[:2] != grid:
        rows, columns = (kernel(*sizes) for sizes in zip(grid, table.shape[:2], strict=True))
        table = np.einsum("ya,xb,abc->yxc", rows, columns, table.astype(np.float64))
    return table.reshape(-1, table.shape[-1]).astype(np.float32)


def square_table(table: Floats) -> Floats:
    """[positions, width] as a square grid."""
    side = math.isqrt(len(table))
    return table.reshape(side, side, -1)


def antialiased(size: int, source: int) -> Doubles:
    """[size, source]: bilinear, the filter widened when shrinking, pixel centres at half."""
    scale = source / size
    width = max(scale, 1.0)
    centers = (np.arange(size) + 0.5) * scale
    distances = np.abs(np.arange(source) + 0.5 - centers[:, None]) / width
    weights: Doubles = np.maximum(0.0, 1.0 - distances)
    weights /= weights.sum(axis=1, keepdims=True)
    return weights


def aligned(size: int, source: int) -> Doubles:
    """[size, source]: bilinear, the corners of both grids on each other."""
    at = np.linspace(0, source - 1, size) if size > 1 else np.zeros(1)
    return np.maximum(0.0, 1.0 - np.abs(np.arange(source) - at[:, None]))


def bilinear(size: int, source: int, more: float = 0.0) -> Doubles:
    """[size, source]: bilinear, pixel centres at half, edges repeated; ``more``: of the size by
    which a step is computed."""
    at = np.clip((np.arange(size) + 0.5) * source / (size + more) - 0.5, 0, source - 1)
    weights: Doubles = np.maximum(0.0, 1.0 - np.abs(np.arange(source) - at[:, None]))
    return weights


def bicubic(size: int, source: int, a: float = -0.75) -> Doubles:
    """[size, source]: four-point cubic, pixel centres at half, edges repeated."""
    at = (np.arange(size) + 0.5) * source / size - 0.5
    weights = np.zeros((size, source))
    for tap in range(-1, 3):
        place = np.floor(at) + tap
        x = np.abs(at - place)
        near = ((a + 2) * x - (a + 3)) * x * x + 1
        far = ((a * x - 5 * a) * x + 8 * a) * x - 4 * a
        index = np.clip(place, 0, source - 1).astype(int)
        np.add.at(weights, (np.arange(size), index), np.where(x <= 1, near, far))
    return weights
