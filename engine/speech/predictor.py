"""Qwen3-TTS's code predictor (https://arxiv.org/abs/2601.15621): a small transformer that makes the
other codes of a frame, one after the other, of the model's state and the frame's first code.

Its sequence is the state, the embedding of the first code, those of the codes after it; each place
has an embedding and an output of its own. A frame's sequence is new: so there is a graph for each
place, whose K and V lie in pages that all of them have.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from gguf_serve.engine.encoders.geometry import by_place, rotation
from gguf_serve.engine.encoders.graph import Graph, Heads
from gguf_serve.engine.encoders.vit import Tower, fed, linear, normalized
from gguf_serve.engine.encoders.weights import EncoderWeights
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.step import DECODE_TILES
from gguf_serve.engine.speech.lookup import Lookup
from gguf_serve.kernels.attention.kv import PAGE, KVPages, KVShape, LayerKV
from gguf_serve.kernels.attention.rope import QKNorm
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tensor import Tensor

Floats = npt.NDArray[np.float32]
Choose = Callable[[Floats], int]
P = "a.gen.code."
ROPE_BASE = 1_000_000.0


def read_tower(gguf: GGUFFile, weights: EncoderWeights) -> Tower:
    """The transformer as a projector file describes it."""
    n_heads = gguf.get_int("clip.gen.audio.attention.head_count")
    return Tower(
        n_layers=gguf.get_int("clip.gen.audio.block_count"),
        n_heads=n_heads,
        n_kv=gguf.get_int("clip.gen.audio.attention.head_count_kv", n_heads),
        width=gguf.get_int("clip.gen.audio.embedding_length"),
        eps=gguf.get_float("clip.gen.audio.attention.layer_norm_epsilon"),
        head_size=weights.shape(f"{P}blk.0.attn_q.weight")[1] // n_heads,
        activation="silu", rms=True, prefix="a.gen.code",
    )  # fmt: skip


class CodePredictor:
    """Lives in the engine's thread. ``n_codes``: of a frame; ``width``: of the model's states."""

    def __init__(
        self, tower: Tower, weights: EncoderWeights, device: Device, programs: Programs
    ) -> None:
        self._tower, self._weights = tower, weights
        self.width, self._vocabulary, n_later = weights.shape(f"{P}embd.weight")
        if n_later + 1 > PAGE or weights.shape(f"{P}head.weight")[2] != n_later:
            raise ModelError(
                f"{P}embd.weight has {n_later} books of codes and {P}head.weight "
                f"{weights.shape(f'{P}head.weight')[2]}, expected as many, below {PAGE}"
            )
        self.n_codes = n_later + 1
        shape = KVShape(tower.n_kv, tower.head, tower.head)
        pages = KVPages(device, [shape] * tower.n_layers, 1, "f32", "f32")
        graphs = [Graph(weights, device, programs) for _ in range(n_later)]
        for place, graph in enumerate(graphs):
            self._record(graph, place, pages.layers)
        self._graphs = graphs
        self._first = Lookup(weights.below_each_other(f"{P}out_embd"), device, programs)
        self._later = Lookup(weights.below_each_other(f"{P}embd"), device, programs)

    def predict(
        self, state: Floats, first: int, choose: Choose
    ) -> tuple[npt.NDArray[np.int32], Floats]:
        """All codes of a frame, int32 [n_codes], and the sum of their embeddings, float32 [width];
        ``choose`` takes a code by its logits."""
        embedding = self._first.rows([first])
        rows, total, codes = np.concatenate([state[None], embedding]), embedding[0], [first]
        for place, graph in enumerate(self._graphs):
            code = choose(graph.run([rows])[-1])
            rows = self._later.rows([place * self._vocabulary + code])
            total = total + rows[0]
            codes.append(code)
        return np.array(codes, np.int32), total

    def _record(self, g: Graph, place: int, pages: list[LayerKV]) -> None:
        """What gives the logits of the code after ``place``: the first graph reads two rows, the
        state and the first code's embedding, the others the embedding of the code before."""
        t, n = self._tower, 2 if place == 0 else 1
        start = 0 if place == 0 else place + 1
        rope = g.constant_rope(rotation(by_place(start + np.arange(n), t.head, ROPE_BASE)))
        x = g.input(n, self.width)
        if self._weights.has(f"{P}proj_in.weight"):
            x = linear(g, x, f"{P}proj_in")
        for i in range(t.n_layers):
            b = f"{P}blk.{i}."
            x = fed(g, _attended(g, x, t, b, start, pages[i], rope), t, b)
        x = normalized(g, x, f"{P}output_norm", t.eps, rms=True)
        g.finish(g.linear(x, self._weights.one_of(f"{P}head", place)), tile=DECODE_TILES[n > 1])


def _attended(
    g: Graph, x: Rows, t: Tower, b: str, start: int, pages: LayerKV, rope: Tensor
) -> Rows:
    w = g.weights
    y = normalized(g, x, f"{b}ln1", t.eps, rms=True)
    q, k, v = g.linear(y, w.stacked([f"{b}attn_{part}" for part in "qkv"])).split(*t.qkv_widths)
    q_norm, k_norm = (w.vector(f"{b}attn_{part}_norm.weight") for part in "qk")
    norm = QKNorm(t.eps, q_norm, k_norm)
    heads = Heads(t.n_heads, t.head, 1 / math.sqrt(t.head), norm, rope, n_kv=t.n_kv)
    return g.add(x, linear(g, g.continued_attention(q, k, v, heads, start, pages), f"{b}attn_out"))


def chooser(rng: np.random.Generator, temperature: float, top_k: int) -> Choose:
    """The ``top_k`` likeliest codes by their probabilities; with a temperature of 0 always the
    likeliest."""

    def choose(logits: Floats) -> int:
        if temperature <= 0:
            return int(logits.argmax())
        order = np.argsort(-logits, kind="stable")[:top_k]
        kept = logits[order].astype(np.float64) / temperature
        shares = np.cumsum(np.exp(kept - kept[0]))
        at = np.searchsorted(shares, rng.random() * shares[-1], side="right")
        return int(order[min(at, len(shares) - 1)])

    return choose
