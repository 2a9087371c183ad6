"""What every vision encoder begins with: patches to rows, positions, the class token."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.encoders.geometry import Floats, Grid, Ints, patch_rows, under_kernel
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.vision_file import SECOND_KERNEL, VisionFile
from gguf_serve.engine.encoders.vit import Tower, optional_norm
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear


def same(rows: Floats) -> Floats:
    return rows


class Encoding(Struct, frozen=True):
    """A recorded encoder: its output rows, the order in which it takes the patches (None: row
    by row), what is done to the result on the host, how an image becomes rows, and the vector of
    tokens that only align it in the prompt."""

    out: Rows
    order: Ints | None = None
    finish: Callable[[Floats], Floats] = same
    rows: Callable[[Floats, int], Floats] = patch_rows
    before: Floats | None = None


def tower(spec: VisionFile, **differences: Any) -> Tower:
    """The transformer of a vision file."""
    return replace(
        Tower(
            spec.n_layers,
            spec.n_heads,
            spec.width,
            spec.eps,
            spec.activation,
            n_kv=spec.n_kv,
            n_used_experts=spec.n_used_experts,
        ),
        **differences,
    )


def patch_matrix(g: Graph, n_frames: int = 1) -> Linear:
    """The patch convolution as a matrix. Two kernels are for two frames of a video, which lie side
    by side (the ``Conv3d`` of https://arxiv.org/abs/2409.12191); a still image is both frames, so
    the sum of the kernels does."""
    w, name = g.weights, "v.patch_embd"
    if not w.has(SECOND_KERNEL):
        return w.linear(name)

    def made() -> Floats:
        kernels = [
            kernel.reshape(len(kernel), -1)
            for kernel in (w.floats(f"{name}.weight"), w.floats(SECOND_KERNEL))
        ]
        return np.concatenate(kernels, axis=1) if n_frames == 2 else kernels[0] + kernels[1]

    bias = (lambda: w.floats(f"{name}.bias")) if w.has(f"{name}.bias") else None
    return w.computed(f"{name} of {n_frames}", made, bias)


def patches_first(kernel: Floats) -> Floats:
    """A convolution [out, in, y, x] as a matrix over patches side by side."""
    return kernel.transpose(0, 2, 3, 1).reshape(len(kernel), -1)


def convolution(g: Graph, name: str) -> Linear:
    """The convolution ``name`` as a matrix over patches side by side."""
    w = g.weights
    bias = (lambda: w.floats(f"{name}.bias").reshape(-1)) if w.has(f"{name}.bias") else None
    return w.computed(name, lambda: patches_first(w.floats(f"{name}.weight")), bias)


def convolved(
    g: Graph, x: Rows, grid: Grid, name: str, stride: int, *, planes: int = 1
) -> tuple[Rows, Grid]:
    """x under a square kernel, padded evenly, in each of several planes; and the grid of the
    result."""
    kernel = g.weights.shape(f"{name}.weight")[0]
    taps, out = under_kernel(grid, kernel, stride, planes=planes)
    return g.linear(g.gather(x, taps), convolution(g, name)), out


def embedded(g: Graph, spec: VisionFile, grid: Grid, positions: Floats | None = None) -> Rows:
    """The rows of all patches, plus learned positions [patches, width]."""
    n = grid[0] * grid[1]
    rows = g.input(n, spec.n_frames * 3 * spec.patch**2)
    x = g.linear(rows, patch_matrix(g, spec.n_frames))
    return x if positions is None else g.add(x, g.constant(positions))


def with_class_token(g: Graph, spec: VisionFile, grid: Grid, places: npt.ArrayLike) -> Rows:
    """Patches and, as the last row, the class token. ``places``: their rows in the table of
    learned positions; the order of the rows themselves means nothing to attention."""
    w, n = g.weights, grid[0] * grid[1]
    start = w.floats("v.position_embd.weight")[np.asarray(places)]
    start[n] += w.floats("v.class_embd")
    x = g.copied(g.constant(start))
    g.linear(g.input(n, 3 * spec.patch**2), patch_matrix(g), add_to=x.first(n))
    return x


def arranged(g: Graph, x: Rows, vectors: Floats, order: npt.ArrayLike) -> Rows:
    """Rows of x by their numbers, and between them vectors of the file [k, width]: -1 in ``order``
    is the first of these, -2 the second."""
    places = np.asarray(order)
    rows = g.gather(x, np.where(places >= 0, places, -1)[:, None])
    marks = np.where(places < 0, -1 - places, -1)
    return g.mixed(g.constant(vectors), marks[:, None], add_to=rows)


def with_ends(g: Graph, x: Rows, begin: str, end: str, order: Ints | None = None) -> Encoding:
    """Rows between two that are vectors of the file."""
    ends = [g.weights.floats(name)[None] for name in (begin, end)]
    return Encoding(x, order, lambda rows: np.concatenate([ends[0], rows, ends[1]]))


def pre_norm(g: Graph, x: Rows, tower: Tower) -> Rows:
    return optional_norm(g, x, "v.pre_ln", tower)


def post_norm(g: Graph, x: Rows, tower: Tower) -> Rows:
    return optional_norm(g, x, "v.post_ln", tower)
