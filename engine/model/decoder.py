"""The forward pass of a decoder: one function that records a step's launches for replay.

A step's inputs lie in device buffers (``StepInputs``); a recording holds for every step of
its ``Mode``, whatever the tokens, positions, pages and their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.layers.ffn import FFNWeights
from gguf_serve.engine.layers.moe import MoEWeights
from gguf_serve.engine.layers.rank import RankHead
from gguf_serve.engine.layers.residuals import Residuals
from gguf_serve.engine.model.place import Place
from gguf_serve.engine.model.recording import Recording
from gguf_serve.engine.model.weights import LayerWeights, ModelWeights, SublayerPlan
from gguf_serve.engine.recording.linear import adapt_embeddings, adapt_outputs
from gguf_serve.engine.recording.step import Mode, Step, Sublayer
from gguf_serve.engine.recording.tensors import Linear
from gguf_serve.kernels.attention.kv import KVShape
from gguf_serve.kernels.matrix.embed import deepstack, embed
from gguf_serve.kernels.matrix.matmul import matmul
from gguf_serve.kernels.matrix.moe import combine
from gguf_serve.kernels.opencl.device import CommandQueue
from gguf_serve.kernels.opencl.tape import OUTPUTS, Tape
from gguf_serve.kernels.opencl.tensor import Tensor, empty
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.rows.norm import UNCHANGED, NormWeights, PostNorm, norm
from gguf_serve.kernels.rows.topk import softcap, topk
from gguf_serve.kernels.rows.watch import mark_room, take_mark, watch


@dataclass(frozen=True, slots=True)
class _Placed:
    """A sublayer on the device ``at``, with its norms and the rows that it reads."""

    at: int
    place: Place
    norm: NormWeights | None
    sublayer: Sublayer
    x: Activations
    post_norm: Tensor | None
    after: tuple[NormWeights, ...]


def kv_shapes(h: Hyperparameters) -> list[KVShape]:
    """What each layer keeps in the KV cache."""
    if h.mla_latent:
        latent = KVShape(1, h.mla_latent + h.n_rot, h.mla_latent)
        return [latent if n else KVShape(0, h.head, h.head_v) for n in h.n_heads]
    joint = bool(h.compress_ratios)
    return [KVShape(n_kv, h.head, h.head_v, joint=joint) for n_kv in h.n_kv]


def _placed(plan: SublayerPlan, place: Place, sublayer: Sublayer, x: Activations) -> _Placed:
    return _Placed(plan.at, place, plan.norm, sublayer, x, plan.post_norm, plan.after)


class Decoder:
    """A model on its devices, with the memory of one step of up to ``n_outputs`` rows."""

    def __init__(
        self, h: Hyperparameters, weights: ModelWeights, places: Sequence[Place], *,
        n_outputs: int, watched: bool = False,
    ) -> None:  # fmt: skip
        """``watched``: see first_not_finite."""
        self._marks = [mark_room(place.device) for place in places] if watched else []
        self._h, self._weights, self._places = h, weights, places
        last = places[weights.output_at]
        self.logits = empty(last.device, (n_outputs, h.n_vocab if self.generates else 0))
        self.hidden = last.workspace.rows("hidden states", h.n_embd)
        self._rank = None if weights.rank is None else RankHead(
            weights.rank, h, last.workspace, n_outputs
        )  # fmt: skip
        readers = [*([weights.output] if weights.output else []), *self._rank_readers]
        self._last = None if not readers else last.workspace.activations(
            "last", readers, n_rows=n_outputs, normed=True
        )  # fmt: skip
        self._residuals = None if weights.residuals is None else weights.residuals.build(
            last.context, last.stream
        )  # fmt: skip
        self._layers = [self._build(layer, i) for i, layer in enumerate(weights.layers)]
        self._tail = self._build_tail()

    def _build(self, layer: LayerWeights, i: int) -> list[_Placed]:
        """The layer's sublayers, each with room for the normalized stream that it reads."""
        built = [
            (plan, plan.weights.build(place.context, i, place.pages.layers[i]))
            for plan in layer.sublayers
            for place in (self._places[plan.at],)
        ]
        placed = list[_Placed]()
        for n, (plan, sublayer) in enumerate(built):
            readers: list[Linear] = []
            for other, also in built[n:]:
                if other is not plan and other.norm is not None:
                    break
                readers += also.readers
            name = f"normed {n}" if layer.parallel else "normed"
            shares = plan.norm is None and placed
            workspace = self._places[plan.at].workspace
            x = placed[-1].x if shares else workspace.activations(name, readers, normed=True)
            placed.append(_placed(plan, self._places[plan.at], sublayer, x))
        return placed

    def _build_tail(self) -> _Placed | None:
        """The last layer's FFN for the rows alone whose logits are wanted: a prompt has one. None
        where it is not that simple: other parts of the layer read or change the stream of all.

        Those rows lie where the hidden states would, which are wanted of all tokens or not at all.
        """
        h, weights, at = self._h, self._weights, self._weights.output_at
        last, layer = len(weights.layers) - 1, weights.layers[-1]
        plan = layer.sublayers[-1]
        alone = plan.norm is not None and not layer.parallel and not layer.skip
        early = {"early_router", "early_experts"} & h.arch.quirks
        later = layer.direction is not None or self._media_for(last, self._places[at]) is not None
        if self._residuals is not None or self._last is None or early or later or not alone:
            return None
        if plan.at != at or not isinstance(plan.weights, FFNWeights | MoEWeights):
            return None
        place = self._places[at].for_rows(self.hidden)
        sublayer = plan.weights.build(place.context, last, place.pages.layers[last])
        x = place.workspace.activations("normed", sublayer.readers, normed=True)
        return _placed(plan, place, sublayer, x)

    @property
    def generates(self) -> bool:
        """Whether it yields logits; an encoder does not."""
        return self._weights.output is not None

    @property
    def is_simd(self) -> bool:
        """Whether all of it is computed by kernels of the simd family."""
        return all(place.device.is_simd for place in self._places)

    @property
    def scores(self) -> Tensor | None:
        """What the ranking head makes of the wanted rows, if the model has one."""
        return None if self._rank is None else self._rank.scores

    @property
    def _rank_readers(self) -> Sequence[Linear]:
        return () if self._weights.rank is None else self._weights.rank.readers

    @property
    def queue(self) -> CommandQueue:
        """Of the device that has the logits."""
        return self._places[self._weights.output_at].device.queue

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
        layer = min([mark for mark in found if mark is not None], default=len(self._layers))
        ends = {-1: "in the embeddings of tokens", len(self._layers): "after the last layer"}
        return ends.get(layer, f"after layer {layer}")

    def _watch(self, recording: Recording, layer: int, stream: Tensor | None = None) -> None:
        if not self._marks:
            return
        at = recording.stream_at
        rows = [(at, stream or self._places[at].stream)]
        for where, x in [*rows, recording.awaited] if recording.awaited else rows:
            watch(recording.on(where).tape, x, layer, self._marks[where])

    def record(self, mode: Mode) -> Recording:
        """The launches of a step: from token ids to what is made of the last hidden states."""
        recording, weights = Recording(self._places, mode), self._weights
        self._embed(recording)
        self._watch(recording, -1)
        if self._residuals is not None:
            self._residuals.start(recording.reading(weights.output_at))
        tail = None if mode.hidden or mode.attention != "tiles" else self._tail
        for i, (layer, sublayers) in enumerate(zip(weights.layers, self._layers, strict=True)):
            self._share_selection(recording, i, layer.mixers_at)
            if tail is not None and i == len(self._layers) - 1:
                self._layer(recording, sublayers[:-1], parallel=False)
                self._select_rows(recording, tail)
                self._layer(recording, [tail], parallel=False)
            elif self._residuals is None:
                self._layer(recording, sublayers, layer.parallel)
            else:
                self._layer_within(recording, i, sublayers, self._residuals)
            self._deepstack(recording, i)
            if layer.skip:
                at = recording.stream_at
                embedding, stream = recording.embedding(at), self._places[at].stream
                tape = recording.writing(at).tape
                combine(tape, embedding, stream, scale=layer.skip, add=True)
            if layer.direction is not None:
                place = self._places[layer.ffn_at]
                tape = recording.writing(layer.ffn_at).tape
                embed(tape, layer.direction, place.zeros, place.stream, add=True)
            is_tail = tail is not None and i == len(self._layers) - 1
            self._watch(recording, i, tail.place.stream if tail and is_tail else None)
        if self._residuals is not None:
            self._residuals.finish(recording.writing(weights.output_at, anew=True))
        self._finish(recording, tail)
        for _, tape in recording.tapes:
            tape.settle()
        return recording

    def _embed(self, recording: Recording) -> None:
        """Token embeddings to the stream."""
        weights, h = self._weights, self._h
        place = self._places[weights.embedding_at]
        inputs, stream = place.inputs, place.stream
        step = recording.writing(weights.embedding_at, anew=True)
        tape = step.tape
        embed(tape, weights.embedding, inputs.tokens, stream, h.embedding_scale, media=inputs.media)
        updates = weights.embedding_updates
        adapt_embeddings(step, place.context, updates, stream, h.embedding_scale)
        if weights.positions is not None:
            embed(tape, weights.positions, inputs.attention.positions, stream, add=True)
        if weights.token_types is not None:
            embed(tape, weights.token_types, place.zeros, stream, add=True)
        if weights.embedding_norm is not None:
            norm(tape, stream, weights.embedding_norm, Activations(h.n_embd, stream))
        if place.embedding is not None:
            recording.keep_embedding()

    def _share_selection(self, recording: Recording, layer: int, at: int) -> None:
        """What an indexer finds is used by later layers without one, on other devices too."""
        h, s = self._h, self._h.sparsity
        if s is None or h.compress_ratios or not h.n_heads[layer] or h.windowed[layer]:
            return
        if s.layers[layer]:
            recording.keep_selection(at)
        elif any(s.layers[:layer]):
            recording.bring_selection(at, layer)

    def _deepstack(self, recording: Recording, layer: int) -> None:
        """An encoder's further embeddings are added to what the first layers give."""
        at = recording.stream_at
        place, n = self._places[at], self._h.n_embd
        if (media := self._media_for(layer, place)) is None:
            return
        tape, tokens = recording.writing(at).tape, place.inputs.tokens
        deepstack(tape, self._weights.embedding, tokens, media, (layer + 1) * n, place.stream)

    def _media_for(self, layer: int, place: Place) -> Tensor | None:
        """An encoder's embeddings, if they have values to add to what this layer gives."""
        media = place.inputs.media
        return None if media is None or (layer + 2) * self._h.n_embd > media.shape[1] else media

    def _select_rows(self, recording: Recording, tail: _Placed) -> None:
        """From here on the rows whose logits are wanted are all the tokens that there are."""
        post, source = recording.take_pending(tail.at), self._places[tail.at]
        step, n = recording.writing(tail.at), self._h.n_embd
        rows = Activations(n, tail.place.stream)
        norm(
            step.tape, source.stream, UNCHANGED, rows, post=post, rows=source.inputs.rows,
            count=OUTPUTS,
        )  # fmt: skip
        step.tape.tokens = OUTPUTS

    def _layer(self, recording: Recording, layer: list[_Placed], parallel: bool) -> None:
        """One layer. Where a norm follows its last sublayer, the next norm carries it out."""
        if {"early_router", "early_experts"} & self._h.arch.quirks:
            for part in layer:
                part.sublayer.prepare(recording.reading(part.at), part.place.stream)
        if parallel:
            for part in layer:
                self._normalize(recording, part)
        for part in layer:
            if not parallel:
                self._normalize(recording, part)
            place, post = part.place, part.post_norm
            step = recording.writing(part.at) if post is None else recording.on(part.at)
            aside = post is not None or len(part.after) > 1
            out = place.sublayer if aside else place.stream
            part.sublayer.record(step, part.x, out, add=not aside)
            self._normalize_after(step, place, part.after)
            if post is not None:
                recording.await_norm(part.at, PostNorm(place.sublayer, post, self._h.post_eps))

    def _layer_within(
        self, recording: Recording, i: int, layer: list[_Placed], residuals: Residuals
    ) -> None:
        """A layer whose sublayers read and write what the residual streams' keeper says."""
        home = self._weights.output_at
        for n, part in enumerate(layer):
            residuals.enter(recording.writing(home, anew=True), i, n)
            self._normalize(recording, part)
            step = recording.writing(part.at)
            part.sublayer.record(step, part.x, part.place.stream, add=False)
            residuals.leave(recording.reading(home), i, n)

    def _normalize(self, recording: Recording, part: _Placed) -> None:
        if part.norm is None:
            return
        post = recording.take_pending(part.at)
        step = recording.reading(part.at) if post is None else recording.writing(part.at)
        norm(step.tape, part.place.stream, part.norm, part.x, post=post)

    def _finish(self, recording: Recording, tail: _Placed | None) -> None:
        """Hidden states of all tokens, if they are wanted; scores and logits of some."""
        at, last_norm = self._weights.output_at, self._weights.output_norm
        inputs = self._places[at].inputs
        stream = self._places[at].stream if tail is None else tail.place.stream
        post = recording.take_pending(at)
        step = recording.reading(at)
        tape = step.tape
        if recording.mode.hidden:
            norm(tape, stream, last_norm, Activations(self._h.n_embd, self.hidden), post=post)
            post = None
        if self._last is None:
            return
        rows = inputs.rows if tail is None else None
        norm(tape, stream, last_norm, self._last, post=post, rows=rows, count=OUTPUTS)
        if self._rank is not None:
            self._rank.record(step, self._last, inputs.counts)
        if self._weights.output is not None:
            self._predict(step, self._weights.output, self._last, inputs.counts)

    def _predict(self, step: Step, output: Linear, last: Activations, counts: Tensor) -> None:
        """Logits."""
        tape, h = step.tape, self._h
        matmul(
            tape, output.matrix, last, self.logits, counts, tile=step.mode.output_tile,
            count=OUTPUTS, bias=output.bias, scale=h.logit_scale,
        )  # fmt: skip
        context = self._places[self._weights.output_at].context
        adapt_outputs(step, context, output.low_rank, last, self.logits, h.logit_scale)
        if h.logit_softcap:
            softcap(tape, self.logits, h.logit_softcap)

    def record_topk(self) -> Tape:
        """The last launches of every step, for which masks must be there."""
        place = self._places[self._weights.output_at]
        tape = Tape(place.device, place.programs)
        if self.generates:
            topk(tape, self.logits, place.inputs.topk)
        return tape

    def _normalize_after(self, step: Step, place: Place, norms: Sequence[NormWeights]) -> None:
        """The stream's own norms after a sublayer; see SublayerPlan."""
        tape, stream, sublayer, n = step.tape, place.stream, place.sublayer, self._h.n_embd
        if len(norms) > 1:
            combine(tape, stream, sublayer, scale=1.0, add=True)
            norm(tape, sublayer, norms[0], Activations(n, sublayer))
            combine(tape, sublayer, stream, scale=1.0, add=True)
        for weights in norms[-1:]:
            norm(tape, stream, weights, Activations(n, stream))
