"""MiMo Audio's encoder of sounds (https://huggingface.co/XiaomiMiMo/MiMo-Audio-Tokenizer): a causal
transformer, whose rows become codes, each the nearest of a book to what the codes before it have
left; and a small transformer over groups of the codes' embeddings.

Which code is nearest is decided on the host, between the two."""

from __future__ import annotations

import numpy as np
from msgspec.structs import replace

from gguf_serve.engine.encoders.audio_file import AudioFile
from gguf_serve.engine.encoders.families.whisper import stem, tower
from gguf_serve.engine.encoders.geometry import Floats, by_place, rotation
from gguf_serve.engine.encoders.graph import Graph
from gguf_serve.engine.encoders.vit import Tower, attended, fed, linear, mlp, normalized
from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.kernels.opencl.tensor import Tensor

ROPE_BASE, LOCAL_ROPE_BASE = 10000.0, 640000.0
SKIPPED_TO_END = 2  # the layer whose output is added in the end


def transformer(g: Graph, spec: AudioFile, n_frames: int, like_llama_cpp: bool) -> Rows:
    """A row for four frames. The model adds what layer 2 yields to the last one's output,
    llama.cpp what that layer has between its attention and its FFN."""
    x = stem(g, spec, n_frames)
    rope = _turned(g, np.arange(x.count), spec, ROPE_BASE)
    skipped = x
    for i, mode in enumerate(spec.window_modes):
        t = replace(tower(spec), causal=True, window=0 if mode < 0 else spec.window)
        b = f"a.blk.{i}."
        x = between = attended(g, x, t, b, [x.count], rope)
        x = fed(g, x, t, b)
        if i == SKIPPED_TO_END:
            skipped = between if like_llama_cpp else x
    x = normalized(g, g.add(x, skipped), "a.post_ln", spec.eps)
    pairs = np.arange(x.count // 2 * 2).reshape(-1, 2)
    x = linear(g, g.gather(x, pairs, by_channel=True), "a.downsample.conv")
    return normalized(g, g.activate(x, "gelu_erf"), "a.downsample.norm", spec.eps)


def embedded_codes(weights: EncoderWeights, spec: AudioFile, rows: Floats) -> Floats:
    """The sums of the embeddings of each row's codes, and rows of zeros up to a whole group."""
    books, tables = weights.floats("a.rvq.codebook.weight"), weights.floats("mm.a.code_embd.weight")
    rest, found = rows.copy(), np.zeros_like(rows)
    for size, book, table in zip(spec.codebooks, books, tables, strict=True):
        own = book[:size]
        codes = (2 * rest @ own.T - (own**2).sum(axis=1)).argmax(axis=1)
        rest -= own[codes]
        found += table[codes]
    return np.pad(found, ((0, -len(found) % spec.stack), (0, 0)))


def local(g: Graph, spec: AudioFile, n: int) -> Rows:
    """A token for each group of rows, which see each other."""
    x = g.input(n, spec.width)
    t = Tower(spec.n_local, spec.n_heads, spec.width, spec.eps, "silu", rms=True)
    rope = _turned(g, np.arange(n) % spec.stack, spec, LOCAL_ROPE_BASE)
    for i in range(spec.n_local):
        b = f"mm.a.local_blk.{i}."
        x = fed(g, attended(g, x, t, b, [spec.stack] * (n // spec.stack), rope), t, b)
    x = normalized(g, x, "mm.a.local_norm", spec.eps, rms=True)
    return mlp(g, x.reshaped(n // spec.stack), "mm.a.mlp.1", "mm.a.mlp.2", "gelu_erf")


def _turned(g: Graph, positions: np.ndarray, spec: AudioFile, base: float) -> Tensor:
    return g.constant_rope(rotation(by_place(positions, spec.width // spec.n_heads, base)))
