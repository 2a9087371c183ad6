"""Encoders after CLIP: LLaVA, MobileVLM, InternVL, CogVLM, Llama 4, Nemotron Nano VL.

They have a class token. The published models put it in front of the patches, and so do we;
llama.cpp appends it, and for all but Llama 4, whose model does that too, the positions are then
off by one. ``like_llama_cpp`` computes what llama.cpp does, for comparisons with it.
"""

from __future__ import annotations

import numpy as np

from gguf_serve.engine.encoders.geometry import (
    Grid,
    antialiased,
    by_halves,
    coordinates,
    resized,
    rotation,
    square_table,
    squares,
    under_kernel,
)
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.patches import (
    Encoding,
    embedded,
    patch_matrix,
    post_norm,
    pre_norm,
    tower,
    with_class_token,
    with_ends,
)
from gguf_serve.engine.encoders.vision_file import VisionFile
from gguf_serve.engine.encoders.vit import gated, linear, mlp, normalized, transformer
from gguf_serve.engine.recording.rows import Rows

NEMOTRON_EPS = 1e-6
PROJECTOR_EPS = 1e-5  # of norms outside the transformer


def class_places(n: int, like_llama_cpp: bool) -> np.ndarray:
    """Rows of the position table for n patches and the class token after them."""
    return np.arange(n + 1) if like_llama_cpp else np.append(np.arange(1, n + 1), 0)


def _clip(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Rows:
    """The features that LLaVA reads: of the layers the file names, or of its last one.

    LLaVA means the last layer but one, and converters leave the last one out of the file;
    llama.cpp leaves out another.
    """
    t, n = tower(spec), grid[0] * grid[1]
    has_class = g.weights.has("v.class_embd")
    if has_class:
        x = with_class_token(g, spec, grid, class_places(n, like_llama_cpp))
    else:
        x = embedded(g, spec, grid, g.weights.floats("v.position_embd.weight"))
    x = pre_norm(g, x, t)
    named = sorted(set(spec.feature_layers))
    last = named[-1] if named else spec.n_layers - like_llama_cpp
    features = g.rows(t.width * len(named), n=x.n)
    places = features.split(*[t.width] * len(named))

    def keep(layer: int, x: Rows) -> None:
        if layer + 1 in named:
            g.copy(x, places[named.index(layer + 1)])

    keep(-1, x)
    x = transformer(g, x, t, lambda i: [x.count], last=last, keep=keep)
    if not named:
        features = x
    if has_class and like_llama_cpp:
        return g.gather(features, np.arange(1, n + 1)[:, None])
    return features.first(n)


def llava(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    x = _clip(g, spec, grid, like_llama_cpp)
    if not g.weights.has("mm.3.weight"):
        return Encoding(mlp(g, x, "mm.0", "mm.2"))
    x = normalized(g, linear(g, x, "mm.0"), "mm.1", PROJECTOR_EPS)
    x = linear(g, g.activate(x, "gelu"), "mm.3")
    return Encoding(normalized(g, x, "mm.4", PROJECTOR_EPS))


# MobileVLM: convolutions over the grid of patches.


def _depthwise(g: Graph, x: Rows, name: str, taps: np.ndarray, add_to: Rows | None = None) -> Rows:
    kernel = g.weights.floats(f"{name}.weight").reshape(x.width, 9).T
    y = g.mixed(x, taps, kernel, add_to=add_to)
    if g.weights.has(f"{name}.bias"):
        y = g.add(y, g.constant(g.weights.floats(f"{name}.bias")[None]))
    return y


def _inverted_residual(g: Graph, x: Rows, name: str, grid: Grid, stride: int) -> tuple[Rows, Grid]:
    """MobileNetV3's block without expansion: depthwise, squeeze and excitation, pointwise."""
    taps, out = under_kernel(grid, 3, stride)
    y = normalized(g, _depthwise(g, x, f"{name}.0.0", taps), f"{name}.0.1", PROJECTOR_EPS)
    y = g.activate(y, "hardswish")
    mean = g.mixed(y, np.arange(y.count)[None], np.full((1, y.count), 1 / y.count, np.float32))
    gate = mlp(g, mean, f"{name}.1.fc1", f"{name}.1.fc2", "relu")
    y = g.activate(g.gather(gate, np.zeros((y.count, 1))), "hardsigmoid", times=y)
    y = normalized(g, linear(g, y, f"{name}.2.0"), f"{name}.2.1", PROJECTOR_EPS)
    return (g.add(y, x) if stride == 1 else y), out


def ldp(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    x = mlp(g, _clip(g, spec, grid, like_llama_cpp), "mm.model.mlp.1", "mm.model.mlp.3")
    x, grid = _inverted_residual(g, x, "mm.model.mb_block.1.block", grid, 1)
    x, grid = _inverted_residual(g, x, "mm.model.mb_block.2.block", grid, 2)
    return Encoding(x)


def ldpv2(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    x = mlp(g, _clip(g, spec, grid, like_llama_cpp), "mm.model.mlp.0", "mm.model.mlp.2")
    x = g.mixed(x, squares(grid, 2), np.full((x.count // 4, 4), 0.25, np.float32))
    taps, _ = under_kernel((grid[0] // 2, grid[1] // 2), 3)
    return Encoding(_depthwise(g, x, "mm.model.peg.0", taps, add_to=x))


def internvl(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    t, n = tower(spec), grid[0] * grid[1]
    x = with_class_token(g, spec, grid, class_places(n, like_llama_cpp))
    x = post_norm(g, transformer(g, pre_norm(g, x, t), t, lambda i: [n + 1]), t)
    x = g.gather(x, squares(grid, spec.merge))
    x = normalized(g, x, "mm.model.mlp.0", PROJECTOR_EPS)
    return Encoding(mlp(g, x, "mm.model.mlp.1", "mm.model.mlp.3"))


def cogvlm(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    t, n = tower(spec, after=True), grid[0] * grid[1]
    x = with_class_token(g, spec, grid, class_places(n, like_llama_cpp))
    x = transformer(g, x, t, lambda i: [n + 1])
    x = linear(g, x.first(n), "mm.model.fc")
    x = g.activate(normalized(g, x, "mm.post_fc_norm", PROJECTOR_EPS), "gelu")
    x = linear(g, gated(g, x, "mm.gate", "mm.up", "silu"), "mm.down")
    return with_ends(g, x, "v.boi", "v.eoi")


def llama4(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    t, n = tower(spec), grid[0] * grid[1]
    x = with_class_token(g, spec, grid, np.arange(n + 1))
    rows, columns = (np.append(places + 1, 0) for places in coordinates(grid))
    rope = g.constant_rope(rotation(by_halves(columns, rows, t.head, 10000.0)))
    x = transformer(g, pre_norm(g, x, t), t, lambda i: [n + 1], rope, neox=False)
    x = post_norm(g, x, t)
    by_columns = (
        squares(grid, spec.merge)
        .reshape(grid[0] // spec.merge, grid[1] // spec.merge, -1)
        .swapaxes(0, 1)
    )
    x = g.gather(x, by_columns.reshape(-1, spec.merge**2))
    x = g.activate(mlp(g, x, "mm.model.mlp.1", "mm.model.mlp.2"), "gelu")
    return Encoding(linear(g, x, "mm.model.fc"))


def nemotron(g: Graph, spec: VisionFile, grid: Grid, like_llama_cpp: bool) -> Encoding:
    """The patches are followed by registers, which have no positions."""
    w, t, n = g.weights, tower(spec), grid[0] * grid[1]
    table = square_table(w.floats("v.position_embd.weight"))
    registers = w.floats("v.class_embd")
    x = g.copied(g.constant(np.concatenate([resized(table, grid, antialiased), registers])))
    g.linear(g.input(n, 3 * spec.patch**2), patch_matrix(g), add_to=x.first(n))
    x = transformer(g, x, t, lambda i: [x.count]).first(n)
    x = g.gather(x, squares(grid, spec.merge))
    x = normalized(g, x, "mm.model.mlp.0", NEMOTRON_EPS, rms=True)
    return Encoding(mlp(g, x, "mm.model.mlp.1", "mm.model.mlp.3", "relu2"))
