"""The language that models are written in.

    def short_conv(g: Graph, x: Rows, w: ShortConvWeights) -> Rows:
        b, c, v = g.linear(x, w.inputs).split(n, n, n)
        return g.output(g.conv(v, w.conv, gate=b, out_gate=c), w.output)

recorder.py says what happens to what is written so.
"""

from __future__ import annotations

from gguf_serve.engine.recording.altup_verbs import AltUpVerbs
from gguf_serve.engine.recording.attention_verbs import AttentionVerbs
from gguf_serve.engine.recording.expert_verbs import ExpertVerbs
from gguf_serve.engine.recording.sequence_verbs import SequenceVerbs
from gguf_serve.engine.recording.sparse_verbs import SparseVerbs
from gguf_serve.engine.recording.state_verbs import StateVerbs
from gguf_serve.engine.recording.stream_verbs import StreamVerbs


class Graph(
    AltUpVerbs, AttentionVerbs, ExpertVerbs, SequenceVerbs, SparseVerbs, StateVerbs, StreamVerbs
):
    """What a model's functions are given to say what is done."""
