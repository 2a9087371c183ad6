"""The forward pass of a decoder: one function that records a step's launches for replay.

A step's inputs lie in device buffers (``StepInputs``); a recording holds for every step of
its ``Mode``, whatever the tokens, positions, pages and their number.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from engine.models.arch import Hyperparameters
from engine.weights import LayerWeights, Linear, ModelWeights
from kernels import attention as attn
from kernels.attention import AttentionInputs, Mask, Scratch
from kernels.device import CommandQueue, Device
from kernels.embed import embed
from kernels.kv import KVPages, KVShape
from kernels.matmul import Activations, activations, glu, matmul
from kernels.norm import NormWeights, PostNorm, norm
from kernels.program import Programs
from kernels.rope import HeadNorm, RopeStyle, rope_kv, rope_table
from kernels.tape import OUTPUTS, Tape
from kernels.tensor import Tensor, empty, upload
from kernels.topk import TopKBuffers, softcap, topk

AttentionMode = Literal["tiles", "single", "split"]


@dataclass(frozen=True, slots=True)
class StepInputs:
    """What a step reads, written by the engine before it; n tokens, m rows of logits."""

    tokens: Tensor  # int32 [n]
    slots: Tensor  # int32 [n]: page * PAGE + row, where a token's K and V go
    rows: Tensor  # int32 [m]: which tokens' logits are wanted
    attention: AttentionInputs
    topk: TopKBuffers

    @property
    def counts(self) -> Tensor:
        return self.attention.counts


@dataclass(frozen=True, slots=True)
class Mode:
    """What a recording is for: tokens per pass over the weights, and how attention goes.

    ``attention``: "tiles" for prompts; for one token per sequence "split" (keys in parts side
    by side) or, where no sequence has more than one part of keys, "single".
    """

    tile: int
    attention: AttentionMode
    output_tile: int


def kv_shapes(h: Hyperparameters) -> list[KVShape]:
    """What each layer keeps in the KV cache."""
    return [KVShape(n_kv, h.head, h.head_v) for n_kv in h.n_kv]


def _window(h: Hyperparameters, layer: int) -> int:
    return h.window if h.windowed[layer] else 0


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
        self._h, self._weights, self._pages, self._inputs = h, weights, pages, inputs
        self._device, self._programs, self._flash = device, programs, flash
        layers = weights.layers
        widths = [sum(part.matrix.n_rows for part in layer.qkv) for layer in layers]
        self.logits = empty(device, (n_outputs, h.n_vocab))
        self._x = empty(device, (n_tokens, h.n_embd))
        self._sublayer = empty(device, (n_tokens, h.n_embd))
        self._qkv = {width: empty(device, (n_tokens, width)) for width in set(widths)}
        self._normed = self._room(n_tokens, [p for la in layers for p in (*la.qkv, la.gate_up)])
        self._last = self._room(n_outputs, [weights.output])
        self._hidden = {
            layer.down.matrix.n_cols: self._room(n_tokens, [layer.down], floats=not device.is_simd)
            for layer in layers
        }
        fused = attn.fuses_quantization(device, h.head_v, plain=not flash)
        self._attended = {
            layer.output.matrix.n_cols: self._room(n_tokens, [layer.output], floats=not fused)
            for layer in layers
        }
        self._tables = {w: self._rope_memory(n_tokens, w) for w in self._rope_kinds()}
        self._split, self._plain = self._scratch(n_split, n_ctx)

    def _rope_kinds(self) -> set[bool]:
        return set(self._h.windowed)

    def _rope_memory(self, n_tokens: int, windowed: bool) -> tuple[Tensor, Tensor]:
        frequencies = self._h.frequencies(self._weights.rope_factors, windowed=windowed)
        table = empty(self._device, (n_tokens, 2, self._h.n_rot // 2))
        return upload(self._device, frequencies), table

    def _scratch(self, n_split: int, n_ctx: int) -> tuple[Scratch | None, Scratch | None]:
        if not self._flash:
            return None, attn.plain_scratch(self._device, n_ctx)
        shapes = [layer.shape for layer in self._pages.layers]
        largest = max(shapes, key=lambda shape: shape.head_v_padded)
        heads = max(self._h.n_heads)
        return attn.split_scratch(self._device, n_split, heads, largest, n_ctx), None

    def _room(self, n_rows: int, consumers: list[Linear], *, floats: bool = False) -> Activations:
        """Activations in the forms that the matrices reading them want."""
        n_cols = consumers[0].matrix.n_cols
        kinds = {linear.matrix.is_float for linear in consumers}
        made = activations(self._device, n_rows, n_cols, quantized=False in kinds)
        if made.quantized and (floats or True in kinds):
            return Activations(
                n_cols, empty(self._device, (n_rows, n_cols)), made.codes, made.scales
            )
        return made

    @property
    def queue(self) -> CommandQueue:
        return self._device.queue

    @property
    def tile_queries(self) -> int:
        """The most tokens of a tile in a mode without split."""
        heads, n_kv = max(self._h.n_heads), min(self._h.n_kv)
        return attn.tile_queries(self._device, heads, n_kv, plain=not self._flash)

    def record(self, mode: Mode) -> Tape:
        """The launches of a step: from token ids to logits and their top-k."""
        tape, inputs, h = Tape(self._device, self._programs), self._inputs, self._h
        for frequencies, table in self._tables.values():
            rope_table(tape, inputs.attention.positions, frequencies, table)
        scale = float(np.float32(np.sqrt(h.n_embd))) if h.arch.scale_embedding else 1.0
        embed(tape, self._weights.embedding, inputs.tokens, self._x, scale)
        pending: Tensor | None = None  # the weight of a norm that the sublayer's output awaits
        for i, layer in enumerate(self._weights.layers):
            pending = self._attention_layer(tape, mode, i, layer, pending)
            pending = self._ffn_layer(tape, mode, layer, pending)
        self._norm(tape, self._weights.output_norm, self._last, pending, rows=inputs.rows)
        output = self._weights.output
        matmul(
            tape, output.matrix, self._last, self.logits, inputs.counts, tile=mode.output_tile,
            count=OUTPUTS, bias=output.bias,
        )  # fmt: skip
        if h.logit_softcap:
            softcap(tape, self.logits, h.logit_softcap)
        topk(tape, self.logits, inputs.topk)
        return tape

    def _norm(
        self,
        tape: Tape,
        weights: NormWeights,
        out: Activations,
        pending: Tensor | None,
        rows: Tensor | None = None,
    ) -> None:
        post = None if pending is None else PostNorm(self._sublayer, pending, self._h.eps)
        count = {} if rows is None else {"count": OUTPUTS}
        norm(tape, self._x, weights, out, post=post, rows=rows, **count)

    def _sublayer_end(
        self, tape: Tape, mode: Mode, linear: Linear, x: Activations, post: Tensor | None
    ) -> Tensor | None:
        """The sublayer's last matrix: added to the stream, or left for the norm after it."""
        matmul(
            tape, linear.matrix, x, self._x if post is None else self._sublayer,
            self._inputs.counts, tile=mode.tile, add=post is None, bias=linear.bias,
        )  # fmt: skip
        return post

    def _attention_layer(
        self, tape: Tape, mode: Mode, i: int, layer: LayerWeights, pending: Tensor | None
    ) -> Tensor | None:
        h, inputs = self._h, self._inputs
        self._norm(tape, layer.attention_norm, self._normed, pending)
        qkv = self._qkv[sum(part.matrix.n_rows for part in layer.qkv)]
        for part in layer.qkv:
            matmul(
                tape, part.matrix, self._normed, qkv, inputs.counts, tile=mode.tile,
                bias=part.bias, out_offset=part.offset,
            )  # fmt: skip
        kv = self._pages.layers[i]
        style = RopeStyle(h.n_rot, h.arch.neox_rope)
        rope_kv(
            tape, qkv, h.n_heads[i], kv, self._tables[h.windowed[i]][1], inputs.slots,
            style=style, scale=h.attention_scale,
            norm=None if layer.qk_norms is None else HeadNorm(h.eps, *layer.qk_norms),
        )  # fmt: skip
        out = self._attended[layer.output.matrix.n_cols]
        attn.attention(
            tape, qkv, h.n_heads[i], kv, inputs.attention, out,
            Mask(_window(h, i), h.attention_softcap),
            queries=1 if mode.attention == "single" else self.tile_queries,
            split=self._split if mode.attention == "split" else None, plain=self._plain,
        )  # fmt: skip
        return self._sublayer_end(tape, mode, layer.output, out, layer.post_attention_norm)

    def _ffn_layer(
        self, tape: Tape, mode: Mode, layer: LayerWeights, pending: Tensor | None
    ) -> Tensor | None:
        self._norm(tape, layer.ffn_norm, self._normed, pending)
        hidden = self._hidden[layer.down.matrix.n_cols]
        glu(
            tape, layer.gate_up.matrix, self._normed, hidden, self._inputs.counts,
            activation=self._h.arch.activation, tile=mode.tile, bias=layer.gate_up.bias,
        )  # fmt: skip
        return self._sublayer_end(tape, mode, layer.down, hidden, layer.post_ffn_norm)
