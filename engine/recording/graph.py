"""The language that mixers and FFNs are written in, and sublayers made of them.

    def short_conv(g: Graph, x: Rows, w: ShortConvWeights) -> Rows:
        b, c, v = g.linear(x, w.inputs).split(n, n, n)
        return g.output(g.conv(v, w.conv, gate=b, out_gate=c), w.output)

recorder.py says what happens to what is written so.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from gguf_serve.engine.recording.attention_verbs import AttentionVerbs
from gguf_serve.engine.recording.expert_verbs import ExpertVerbs
from gguf_serve.engine.recording.recorder import Rows
from gguf_serve.engine.recording.sparse_verbs import SparseVerbs
from gguf_serve.engine.recording.state_verbs import StateVerbs
from gguf_serve.engine.recording.step import Context, Step
from gguf_serve.engine.recording.tensors import Linear
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.quantization.activations import Activations


class Graph(AttentionVerbs, ExpertVerbs, SparseVerbs, StateVerbs):
    """What a sublayer's function is given to say what is done."""


class RecordedSublayer:
    """A mixer or FFN whose function has been recorded; a Sublayer (step.py)."""

    def __init__(self, context: Context, function: Callable[[Graph, Rows], Rows]) -> None:
        self._graph = Graph(context)
        self._x = self._graph.input(context.h.n_embd)
        self._graph.finish(function(self._graph, self._x))

    @property
    def readers(self) -> Sequence[Linear]:
        return self._x.value.readers

    def prepare(self, step: Step, stream: Tensor) -> None:
        self._graph.emit_early(step, stream)

    def record(self, step: Step, x: Activations, out: Tensor, *, add: bool) -> None:
        self._graph.emit(step, self._x, x, out, add=add)
