"""Mixture of experts: a router, experts, and what stands beside them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from engine.errors import ModelError
from engine.models.arch import Hyperparameters
from engine.models.experts import Experts, ExpertsWeights, load_experts
from engine.models.ffn import FFN, FFNWeights, load_ffn
from engine.models.step import Context, Step
from engine.tensors import Linear, TensorSource
from kernels.kv import LayerKV
from kernels.matmul import Activations, matmul
from kernels.moe import Routing, TokenExperts
from kernels.norm import UNCHANGED, NormWeights, norm
from kernels.tensor import Tensor


@dataclass(frozen=True, slots=True)
class LatentWeights:
    """Ways to the space that experts work in, and back after a norm (Kimi K3)."""

    down: Linear
    norm: NormWeights
    up: Linear


@dataclass(frozen=True, slots=True)
class MoEWeights:
    """``beside`` is an FFN that every token takes, with ``beside_gate`` as far as that says;
    ``chunks`` are smaller experts, each shared by a few of the others, that read what those
    yield (GroveMoE). With ``latent`` the experts work in a space of their own. ``table``: int32
    [vocabulary, used], the experts of each token, where the router does not choose them."""

    router: Linear
    choice_bias: Tensor | None
    table: Tensor | None
    experts: ExpertsWeights
    chunks: ExpertsWeights | None
    norm: NormWeights | None  # of what the experts read, if that is not what the layer reads
    latent: LatentWeights | None
    beside: FFNWeights | None
    beside_gate: Linear | None

    def build(self, context: Context, layer: int, kv: LayerKV) -> MoE:
        return MoE(self, context, layer)


def load_moe(source: TensorSource, h: Hyperparameters, layer: int) -> MoEWeights:
    """The experts of a layer; ModelError for tensors that are missing or do not fit."""
    b = f"blk.{layer}."
    beside = None
    if source.has(f"{b}ffn_up_shexp.weight"):
        beside = load_ffn(source, h, layer, "_shexp")
    elif h.arch.dense_beside and source.has(f"{b}ffn_up.weight"):
        beside = load_ffn(source, h, layer)
    own_norm = source.vector(f"{b}ffn_norm_exps.weight")
    router = source.linear(f"{b}ffn_gate_inp", h.n_embd)
    source.check_rows(f"{b}ffn_gate_inp.weight", h.experts.n)
    chunks = source.has(f"{b}ffn_up_chexps.weight")
    experts = load_experts(source, f"{b}ffn_", "_exps")
    if h.arch.experts_scaled_before and len(experts.first) > 1:
        raise ModelError(
            f"adapters of {b}ffn_gate_exps and {b}ffn_up_exps are not supported, whose input "
            f"{h.arch.name} multiplies with a token's weight of the expert"
        )
    return MoEWeights(
        router=router,
        choice_bias=source.vector(f"{b}exp_probs_b.bias", f"{b}exp_probs_b.weight"),
        table=_load_table(source, h, f"{b}ffn_gate_tid2eid.weight"),
        experts=experts,
        chunks=load_experts(source, f"{b}ffn_", "_chexps") if chunks else None,
        latent=_load_latent(source, h, b),
        norm=None if own_norm is None else NormWeights(own_norm, h.eps),
        beside=beside,
        beside_gate=source.optional_linear(f"{b}ffn_gate_inp_shexp"),
    )


def _load_table(source: TensorSource, h: Hyperparameters, name: str) -> Tensor | None:
    """Which experts each token has."""
    array = source.integers(name)
    if array is None:
        return None
    source.check_shape(name, (h.experts.used, h.n_vocab))
    if array.min() < 0 or array.max() >= h.experts.n:
        raise ModelError(
            f"tensor {name} names experts {array.min()} to {array.max()}, of {h.experts.n}"
        )
    return source.upload(array)


def _load_latent(source: TensorSource, h: Hyperparameters, b: str) -> LatentWeights | None:
    if not source.has(f"{b}ffn_routed_down.weight"):
        return None
    return LatentWeights(
        source.linear(f"{b}ffn_routed_down", h.n_embd),
        NormWeights(source.vector(f"{b}ffn_routed_norm.weight"), h.eps),
        source.linear(f"{b}ffn_routed_up"),
    )


class MoE:
    """A layer's experts with the memory that they need."""

    def __init__(self, weights: MoEWeights, context: Context, layer: int) -> None:
        h, workspace = context.h, context.workspace
        self._w, self._c = weights, context
        routing = Routing(
            h.experts.n, h.experts.used, h.experts.gate, h.experts.normalize, h.experts.scale,
            groups=h.experts.groups,
        )  # fmt: skip
        self._logits = workspace.rows("router logits", h.experts.n)
        self._experts = Experts(weights.experts, context, layer, routing, "experts")
        self._chunks = None if weights.chunks is None else Experts(
            weights.chunks, context, layer, replace(routing, divide=h.experts.chunk[0]), "chunks"
        )  # fmt: skip
        self._summed = None if self._chunks is None else workspace.activations(
            "experts summed", self._chunks.readers
        )  # fmt: skip
        self._latent = None if weights.latent is None else Latent(
            weights.latent, context, self._experts.readers
        )  # fmt: skip
        self._beside = None if weights.beside is None else FFN(
            weights.beside, context, scale=1.0, limit=h.experts.limits_beside[layer]
        )  # fmt: skip
        self._table = None if weights.table is None else TokenExperts(
            weights.table, context.inputs.tokens
        )  # fmt: skip
        self._extra = workspace.rows("beside experts", h.n_embd)
        self._extra_gate = workspace.rows("beside gate", 1)
        early = h.arch.experts_early
        self._early = workspace.activations("early", self._expert_readers) if early else None

    @property
    def _expert_readers(self) -> Sequence[Linear]:
        first = self._experts.readers if self._w.latent is None else (self._w.latent.down,)
        return (*first, self._w.router)

    @property
    def readers(self) -> Sequence[Linear]:
        gate = () if self._w.beside_gate is None else (self._w.beside_gate,)
        beside = () if self._beside is None else self._beside.readers
        return (*self._expert_readers, *beside, *gate)

    def prepare(self, step: Step, stream: Tensor) -> None:
        if self._c.h.arch.route_early:
            self._matmul(step, self._w.router, Activations(stream.shape[1], stream), self._logits)
        if self._early is not None and self._w.norm is not None:
            norm(step.tape, stream, self._w.norm, self._early)
            self._run_experts(step, self._early)

    def record(self, step: Step, x: Activations, out: Tensor, *, add: bool) -> None:
        h, gate = self._c.h, self._w.beside_gate
        if self._early is None:
            self._run_experts(step, x)
        if self._latent is not None:
            self._latent.leave(step, self._experts, out, add=add)
            if self._beside is not None:
                self._beside.record(step, x, out, add=True)
            return
        if self._beside is not None:
            self._beside.record(step, x, self._extra, add=False)
        if gate is not None:
            self._matmul(step, gate, x, self._extra_gate)
        self._experts.combine(
            step, out, add=add, extra=None if self._beside is None else self._extra,
            gate=None if gate is None else self._extra_gate,
            scale=h.residual_scale * (h.arch.ffn_scale if self._beside is not None else 1.0),
        )  # fmt: skip
        if self._chunks is not None and self._summed is not None:
            self._experts.combine(step, self._extra, add=False, scale=1.0)
            norm(step.tape, self._extra, UNCHANGED, self._summed)
            self._chunks.record(step, self._logits, self._w.choice_bias, self._summed)
            self._chunks.combine(step, out, add=True, scale=h.residual_scale * h.experts.chunk[1])

    def _matmul(self, step: Step, linear: Linear, x: Activations, out: Tensor) -> None:
        matmul(
            step.tape, linear.matrix, x, out, self._c.inputs.counts, tile=step.tile,
            bias=linear.bias,
        )  # fmt: skip

    def _run_experts(self, step: Step, x: Activations) -> None:
        """Which experts are chosen is found out on the device."""
        if not self._c.h.arch.route_early:
            self._matmul(step, self._w.router, x, self._logits)
        if self._latent is not None:
            x = self._latent.enter(step, x)
        self._experts.record(step, self._logits, self._w.choice_bias, x, self._table)


class Latent:
    """The ways to and from the experts' own space, with the memory that they need."""

    def __init__(self, weights: LatentWeights, context: Context, readers: Sequence[Linear]) -> None:
        workspace, n = context.workspace, weights.down.matrix.n_rows
        self._w, self._c = weights, context
        self._rows = workspace.rows("latent", n)
        self._read = workspace.activations("latent read", readers)
        self._normed = workspace.activations("latent normed", [weights.up])

    def enter(self, step: Step, x: Activations) -> Activations:
        """What the experts read."""
        self._matmul(step, self._w.down, x, self._rows, add=False)
        norm(step.tape, self._rows, UNCHANGED, self._read)
        return self._read

    def leave(self, step: Step, experts: Experts, out: Tensor, *, add: bool) -> None:
        """From what the experts yield to the layer's output."""
        experts.combine(step, self._rows, add=False, scale=self._c.h.residual_scale)
        norm(step.tape, self._rows, self._w.norm, self._normed)
        self._matmul(step, self._w.up, self._normed, out, add=add)

    def _matmul(
        self, step: Step, linear: Linear, x: Activations, out: Tensor, *, add: bool
    ) -> None:
        matmul(
            step.tape, linear.matrix, x, out, self._c.inputs.counts, tile=step.tile,
            bias=linear.bias, add=add,
        )  # fmt: skip
