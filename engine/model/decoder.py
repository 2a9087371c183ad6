"""The forward pass of a decoder: a model's list of entries, recorded once, and the launches of
that for each mode of a step.

A step's inputs lie in device buffers (``StepInputs``); a recording holds for every step of
its ``Mode``, whatever the tokens, positions, pages and their number.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.layers.attention.attention import ENCODED
from gguf_serve.engine.layers.ends import LOWEST_LOGIT
from gguf_serve.engine.layers.rank import RankOfMean
from gguf_serve.engine.model.place import Place
from gguf_serve.engine.model.recording import Recording, is_parted
from gguf_serve.engine.model.weights import ModelWeights
from gguf_serve.engine.model.wire import Wire
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.memory import Layout, shared_blocks
from gguf_serve.engine.recording.planning import Plan, plan
from gguf_serve.engine.recording.rows import Rows, Value
from gguf_serve.engine.recording.step import Mode
from gguf_serve.kernels.attention.kv import KVShape
from gguf_serve.kernels.opencl.device import CommandQueue
from gguf_serve.kernels.opencl.tape import Tape
from gguf_serve.kernels.opencl.tensor import Tensor, empty, write
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.rows.topk import topk
from gguf_serve.kernels.rows.watch import mark_room, take_mark


def kv_shapes(h: Hyperparameters) -> list[KVShape]:
    """What each layer keeps in the KV cache."""
    if h.mla_latent:
        latent = KVShape(1, h.mla_latent + h.n_rot, h.mla_latent)
        return [latent if n else KVShape(0, h.head, h.head_v) for n in h.n_heads]
    joint = bool(h.compress_ratios)
    owned = (n if h.kv_layers[i] == i else 0 for i, n in enumerate(h.n_kv))
    sizes = (h.head_sizes(i) for i in range(h.n_layers))
    return [
        KVShape(n_kv, size.qk, size.v, joint=joint) for n_kv, size in zip(owned, sizes, strict=True)
    ]


class Kind(NamedTuple):
    """What differs between modes before any launch: the hidden states of all tokens are wanted;
    few rows are wanted of many tokens; the tokens are an encoder's."""

    hidden: bool
    few: bool
    encodes: bool = False


KINDS = (
    Kind(False, False), Kind(False, True), Kind(True, False), Kind(False, False, True),
    Kind(True, False, True),
)  # fmt: skip


class Decoder:
    """A model on its devices, with the memory of one step of up to ``n_outputs`` rows."""

    def __init__(
        self, h: Hyperparameters, weights: ModelWeights, places: Sequence[Place], *,
        n_outputs: int, watched: bool = False,
    ) -> None:  # fmt: skip
        """``watched``: see first_not_finite."""
        self._marks = [mark_room(place.device) for place in places] if watched else []
        self._weights, self._places = weights, places
        last = places[weights.placement.output]
        n_tokens = last.workspace.n_tokens
        self.logits = empty(last.device, (n_outputs, h.n_vocab if self.generates else 0))
        if weights.head.has_silent_tokens(h):  # no step writes their logits
            write(
                last.device,
                self.logits,
                np.full(self.logits.shape, LOWEST_LOGIT, np.float32),
                wait=True,
            )
        self.hidden = empty(last.device, (n_tokens, h.state_size))  # of all tokens
        self.states = self.hidden  # of all tokens, for heads or a draft; maybe others
        self.gives_states = h.takes_states or h.gives_states or weights.handover is not None
        if weights.handover is not None:
            self.states = empty(last.device, (n_tokens, weights.handover.width))
        elif not h.states_normed:
            self.states = empty(last.device, (n_tokens, weights.state_width))
        self.scores: Tensor | None = None  # of the ranking head: float32 [n_outputs, scores]
        graph = Graph([place.context for place in places], weights.placement.parts)
        results = {False: self._write(graph, n_outputs)}  # by Kind.encodes
        if ENCODED in graph.kept:
            with graph.on(weights.head.part):
                encoded = graph.keep(graph.copied(graph.kept[ENCODED]), self.hidden)
            results[True] = [rows.value for rows in graph.stored], [encoded.value]
        self.encodes = True in results
        kinds, plans = [kind for kind in KINDS if kind.encodes in results], list[Plan]()
        for kind in kinds:
            some, hidden = results[kind.encodes]
            wanted = [*some, *hidden * kind.hidden]
            plans.append(plan(graph.launches, wanted, wanted_only=kind.few))
        devices = [place.device for place in places]
        layouts = [Layout(each, devices, n_tokens, n_outputs) for each in plans]
        blocks = shared_blocks(layouts, devices)
        self._plans: dict[Kind, tuple[Plan, Mapping[Value, Activations]]] = {
            kind: (each, layout.bind(blocks))
            for kind, each, layout in zip(kinds, plans, layouts, strict=True)
        }

    def _write(self, g: Graph, n_outputs: int) -> tuple[list[Value], list[Value]]:
        """The model from its first entry to its last one. Yields what it makes of the tokens whose
        logits are wanted, and the hidden states of all, for heads or a draft too."""
        weights, head, handover = self._weights, self._weights.head, self._weights.handover
        x = weights.embedding(g)
        self._watch(g, -1, weights.embedding.part, x)
        for entry in weights.before:
            x = entry(g, x)
        for i, layer in enumerate(weights.layers):
            g.begin_layer(x)
            if handover is not None:
                handover.note(g, x, i)
            for entry in layer.entries:
                x = entry(g, x)
            self._watch(g, i, layer.part + 1, x)
        if handover is not None:
            handover.note(g, x, len(weights.layers))
        streams = x
        for entry in weights.after:
            x = entry(g, x)
        hidden, some = [g.keep(head.hidden(g, x), self.hidden).value], list[Value]()
        if self.states is not self.hidden:
            states = head.unnormed(g, streams) if handover is None else handover.states(g)
            hidden.append(g.keep(states, self.states).value)
        if head.output is None and head.rank is None:
            return some, hidden
        last = head.last(g, x)
        scores, logits = head.scores(g, last), head.logits(g, last)
        if scores is not None:
            device = self._places[weights.placement.output].device
            self.scores = empty(device, (n_outputs, scores.width))
            some.append(g.keep(scores, self.scores).value)
        if logits is not None:
            some.append(g.keep(logits, self.logits).value)
        return some, hidden

    def _watch(self, g: Graph, layer: int, part: int, x: Rows) -> None:
        if self._marks:
            with g.on(part):
                g.watch(x, layer, self._marks[self._weights.placement.parts[part]])

    @property
    def rank_of_mean(self) -> RankOfMean | None:
        """The ranking head, where it reads the mean of all hidden states."""
        return self._weights.head.rank_of_mean

    @property
    def generates(self) -> bool:
        """Whether it yields logits; an encoder does not."""
        return self._weights.head.output is not None

    @property
    def is_simd(self) -> bool:
        """Whether all of it is computed by kernels of the simd family."""
        return all(place.device.is_simd for place in self._places)

    @property
    def queue(self) -> CommandQueue:
        """Of the device that has the logits."""
        return self._places[self._weights.placement.output].device.queue

    @property
    def wires(self) -> list[Wire | None]:
        """To the processes that have them, by device; None: this one."""
        return [place.wire for place in self._places]

    @property
    def tile_queries(self) -> list[int]:
        """The most tokens of a tile of attention, by device."""
        return [place.tile_queries for place in self._places]

    def first_not_finite(self) -> str:
        """Since the last call: where the stream was not finite first, as "after layer 3"; "" if
        this is not ``watched``."""
        if not self._marks:
            return ""
        listed = zip(self._places, self._marks, strict=True)
        found = [take_mark(place.device, mark) for place, mark in listed]
        n_layers = len(self._weights.layers)
        layer = min([mark for mark in found if mark is not None], default=n_layers)
        ends = {-1: "in the embeddings of tokens", n_layers: "after the last layer"}
        return ends.get(layer, f"after layer {layer}")

    def record(self, mode: Mode) -> Recording:
        """The launches of a step: from token ids to what is made of the last hidden states."""
        few = mode.attention == "tiles" and not mode.hidden and not mode.encodes
        kind = Kind(mode.hidden, few, mode.encodes)
        return Recording(self._places, mode, *self._plans[kind])

    @property
    def is_parted(self) -> bool:
        """Whether steps may overlap that other processes have a part of, see is_parted."""
        is_here = [wire is None for wire in self.wires]
        return all(is_parted(each, is_here) for each, _ in self._plans.values())

    def record_topk(self) -> Tape:
        """The last launches of every step, for which masks must be there."""
        place = self._places[self._weights.placement.output]
        tape = Tape(place.device, place.programs)
        if self.generates:
            topk(tape, self.logits, place.inputs.topk)
        return tape
