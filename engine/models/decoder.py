"""The forward pass of a decoder: one function that records a step's launches for replay.

A step's inputs lie in device buffers (``StepInputs``); a recording holds for every step of
its ``Mode``, whatever the tokens, positions, pages and their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from engine.models.arch import Hyperparameters
from engine.models.rank import RankHead
from engine.models.step import Context, Mode, Step, StepInputs, Sublayer, Workspace
from engine.tensors import Linear
from engine.weights import LayerWeights, ModelWeights
from kernels import attention as attn
from kernels.attention import Scratch
from kernels.device import CommandQueue, Device
from kernels.embed import embed
from kernels.kv import KVPages, KVShape, LayerKV
from kernels.matmul import Activations, matmul
from kernels.moe import combine
from kernels.norm import NormWeights, PostNorm, norm
from kernels.program import Programs
from kernels.rope import rope_table
from kernels.state import SlotStates
from kernels.tape import OUTPUTS, Tape
from kernels.tensor import Tensor, empty, upload, zeros
from kernels.topk import softcap, topk


@dataclass(frozen=True, slots=True)
class _Placed:
    """A sublayer with its norms and the rows that it reads."""

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
    return [KVShape(n_kv, h.head, h.head_v) for n_kv in h.n_kv]


class Decoder:
    """A model on a device, with the memory of one step of ``n_tokens`` and ``n_outputs``."""

    def __init__(
        self,
        h: Hyperparameters,
        weights: ModelWeights,
        pages: KVPages,
        inputs: StepInputs,
        device: Device,
        programs: Programs,
        *,
        n_tokens: int,
        n_outputs: int,
        n_split: int,
        n_ctx: int,
        flash: bool,
    ) -> None:
        """``n_split``: most sequences of a step of single tokens; ``flash``: fused attention."""
        self._h, self._weights, self._inputs = h, weights, inputs
        self._device, self._programs = device, programs
        workspace = Workspace(device, n_tokens)
        self.logits = empty(device, (n_outputs, h.n_vocab if self.generates else 0))
        self.hidden = workspace.rows("hidden states", h.n_embd)
        self._x = workspace.rows("stream", h.n_embd)
        self._sublayer = workspace.rows("sublayer", h.n_embd)
        skips = any(layer.skip for layer in weights.layers)
        self._embedding = workspace.rows("embedding", h.n_embd) if skips else None
        self._rank = None if weights.rank is None else RankHead(
            weights.rank, h, workspace, n_outputs
        )  # fmt: skip
        readers = [*([weights.output] if weights.output else []), *self._rank_readers]
        self._last = None if not readers else workspace.activations(
            "last", readers, n_rows=n_outputs
        )  # fmt: skip
        self._zeros = zeros(device, (n_tokens,), np.int32)
        self._rope = {
            windowed: self._rope_memory(workspace, n_ctx, windowed)
            for windowed in {w for w, rope in zip(h.windowed, h.rope, strict=True) if rope}
        }
        split, plain = _scratch(h, device, pages, n_split, n_ctx, flash)
        self.tile_queries = _tile_queries(h, device, flash)
        self.states = SlotStates(n_split)
        self._context = Context(
            h, device, workspace, inputs, self.states, flash,
            {windowed: table for windowed, (_, table) in self._rope.items()},
            split, plain, self.tile_queries,
        )  # fmt: skip
        self._layers = [
            self._build(layer, i, pages.layers[i]) for i, layer in enumerate(weights.layers)
        ]

    def _rope_memory(
        self, workspace: Workspace, n_ctx: int, windowed: bool
    ) -> tuple[Tensor, Tensor]:
        """Frequencies, and room for cos and sin of a step's tokens."""
        h, weights = self._h, self._weights
        scaled = h.arch.window_rope_scaled or not windowed
        long = n_ctx > h.rope_scaling.original_context
        factors = weights.rope_factors_long if long else weights.rope_factors
        frequencies = h.rope_scaling_of(scaled).frequencies(
            h.rope_base_window if windowed else h.rope_base, h.n_rot, factors
        )
        table = workspace.tensor(f"rope {windowed}", workspace.n_tokens, 2, h.n_rot // 2)
        return upload(self._device, frequencies), table

    def _build(self, layer: LayerWeights, i: int, kv: LayerKV) -> list[_Placed]:
        """The layer's sublayers, each with room for the normalized stream that it reads."""
        built = [(plan, plan.weights.build(self._context, i, kv)) for plan in layer.sublayers]
        workspace, placed = self._context.workspace, list[_Placed]()
        for n, (plan, sublayer) in enumerate(built):
            readers: list[Linear] = []
            for other, also in built[n:]:
                if other is not plan and other.norm is not None:
                    break
                readers += also.readers
            name = f"normed {n}" if layer.parallel else "normed"
            shares = plan.norm is None and placed
            x = placed[-1].x if shares else workspace.activations(name, readers)
            placed.append(_Placed(plan.norm, sublayer, x, plan.post_norm, plan.after))
        return placed

    @property
    def generates(self) -> bool:
        """Whether it yields logits; an encoder does not."""
        return self._weights.output is not None

    @property
    def scores(self) -> Tensor | None:
        """What the ranking head makes of the wanted rows, if the model has one."""
        return None if self._rank is None else self._rank.scores

    @property
    def _rank_readers(self) -> Sequence[Linear]:
        return () if self._weights.rank is None else self._weights.rank.readers

    @property
    def queue(self) -> CommandQueue:
        return self._device.queue

    def record(self, mode: Mode) -> Tape:
        """The launches of a step: from token ids to what is made of the last hidden states."""
        tape = Tape(self._device, self._programs)
        step = Step(tape, mode)
        self._embed(tape)
        pending: PostNorm | None = None  # a norm that the last sublayer's output awaits
        for weights, layer in zip(self._weights.layers, self._layers, strict=True):
            pending = self._layer(step, layer, weights.parallel, pending)
            if self._embedding is not None:
                combine(tape, self._embedding, self._x, scale=weights.skip, add=True)
        self._finish(step, pending)
        return tape

    def _finish(self, step: Step, pending: PostNorm | None) -> None:
        """Hidden states of all tokens, if they are wanted; scores and logits of some."""
        tape, inputs, last_norm = step.tape, self._inputs, self._weights.output_norm
        if step.mode.hidden:
            states = Activations(self._h.n_embd, self.hidden)
            norm(tape, self._x, last_norm, states, post=pending)
            pending = None
        if self._last is None:
            return
        norm(tape, self._x, last_norm, self._last, post=pending, rows=inputs.rows, count=OUTPUTS)
        if self._rank is not None:
            self._rank.record(step, self._last, inputs.counts)
        if self._weights.output is not None:
            self._predict(step, self._weights.output, self._last)

    def _predict(self, step: Step, output: Linear, last: Activations) -> None:
        """Logits and their top-k."""
        tape, inputs, h = step.tape, self._inputs, self._h
        matmul(
            tape, output.matrix, last, self.logits, inputs.counts, tile=step.mode.output_tile,
            count=OUTPUTS, bias=output.bias, scale=h.logit_scale,
        )  # fmt: skip
        if h.logit_softcap:
            softcap(tape, self.logits, h.logit_softcap)

    def record_topk(self) -> Tape:
        """The last launches of every step, for which masks must be there."""
        tape = Tape(self._device, self._programs)
        if self.generates:
            topk(tape, self.logits, self._inputs.topk)
        return tape

    def _embed(self, tape: Tape) -> None:
        """Token embeddings to the stream, and what depends on the positions alone."""
        inputs, weights, h = self._inputs, self._weights, self._h
        positions = inputs.attention.positions
        for frequencies, table in self._rope.values():
            rope_table(tape, positions, frequencies, table, h.rope_scaling.magnitude)
        embed(tape, weights.embedding, inputs.tokens, self._x, h.embedding_scale)
        if weights.positions is not None:
            embed(tape, weights.positions, positions, self._x, add=True)
        if weights.token_types is not None:
            embed(tape, weights.token_types, self._zeros, self._x, add=True)
        if weights.embedding_norm is not None:
            norm(tape, self._x, weights.embedding_norm, Activations(h.n_embd, self._x))
        if self._embedding is not None:
            unchanged = NormWeights(None, 0.0)
            norm(tape, self._x, unchanged, Activations(h.n_embd, self._embedding))

    def _layer(
        self, step: Step, layer: list[_Placed], parallel: bool, pending: PostNorm | None
    ) -> PostNorm | None:
        """One layer. Returns the norm that its last output awaits, if there is one: it is
        carried out by the next norm."""
        for part in layer:
            part.sublayer.prepare(step, self._x)
        if parallel:
            for part in layer:
                pending = self._normalize(step, part, pending)
        for part in layer:
            if not parallel:
                pending = self._normalize(step, part, pending)
            post = part.post_norm
            out = self._x if post is None else self._sublayer
            if len(part.after) > 1:
                out = self._sublayer
            part.sublayer.record(step, part.x, out, add=out is self._x)
            self._normalize_after(step.tape, part.after)
            if post is not None:
                pending = PostNorm(self._sublayer, post, self._h.post_eps)
        return pending

    def _normalize(self, step: Step, part: _Placed, pending: PostNorm | None) -> PostNorm | None:
        if part.norm is None:
            return pending
        norm(step.tape, self._x, part.norm, part.x, post=pending)
        return None

    def _normalize_after(self, tape: Tape, norms: Sequence[NormWeights]) -> None:
        """The stream's own norms after a sublayer; see SublayerPlan."""
        if len(norms) > 1:
            combine(tape, self._x, self._sublayer, scale=1.0, add=True)
            norm(tape, self._sublayer, norms[0], Activations(self._h.n_embd, self._sublayer))
            combine(tape, self._sublayer, self._x, scale=1.0, add=True)
        for weights in norms[-1:]:
            norm(tape, self._x, weights, Activations(self._h.n_embd, self._x))


def _tile_queries(h: Hyperparameters, device: Device, flash: bool) -> int:
    """The most tokens of a tile in a mode without split."""
    groups = [n // k for n, k in zip(h.n_heads, h.n_kv, strict=True) if n and k]
    return attn.tile_queries(device, max(groups, default=1), 1, plain=not flash)


def _scratch(
    h: Hyperparameters, device: Device, pages: KVPages, n_split: int, n_ctx: int, flash: bool
) -> tuple[Scratch | None, Scratch | None]:
    if not flash:
        return None, attn.plain_scratch(device, n_ctx)
    largest = max((layer.shape for layer in pages.layers), key=lambda s: s.head_v_padded)
    return attn.split_scratch(device, n_split, max(h.n_heads), largest, n_ctx), None
