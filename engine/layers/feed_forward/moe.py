"""Mixture of experts: a router, experts, and the shared expert."""

from __future__ import annotations

from msgspec import Struct
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.layers.feed_forward.experts import ExpertsWeights, experts, load_experts
from gguf_serve.engine.layers.feed_forward.ffn import FFNWeights, ffn, load_ffn
from gguf_serve.engine.recording.expert_verbs import Choice
from gguf_serve.engine.recording.graph import Graph
from gguf_serve.engine.recording.rows import Rows
from gguf_serve.engine.recording.tensors import Linear, TensorSource
from gguf_serve.kernels.matrix.moe import Routing
from gguf_serve.kernels.opencl.tensor import Tensor
from gguf_serve.kernels.rows.norm import NormWeights

LATENT_NAMES = ("ffn_routed", "ffn_latent")  # Kimi K3's, which has a norm, and Nemotron-H's


class LatentWeights(Struct, frozen=True):
    """Ways to the space that experts work in, and back after a norm (Kimi K3)."""

    down: Linear
    norm: NormWeights
    up: Linear


class MoEWeights(Struct, frozen=True):
    """``shared_expert`` is an FFN that every token takes, with ``shared_expert_gate`` as far as
    that says; ``chunks`` are smaller experts, each shared by a few of the others, that read what
    those yield (GroveMoE). With ``latent`` the experts work in a space of their own. ``table``:
    int32 [vocabulary, used], the experts of each token, where the router does not choose them."""

    router: Linear
    choice_bias: Tensor | None
    table: Tensor | None
    experts: ExpertsWeights
    chunks: ExpertsWeights | None
    norm: NormWeights | None  # of what the experts read, if that is not what the layer reads
    latent: LatentWeights | None
    shared_expert: FFNWeights | None
    shared_expert_gate: Linear | None

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        return moe(g, x, self, layer)


def load_moe(source: TensorSource, h: Hyperparameters, layer: int) -> MoEWeights:
    """The experts of a layer; ModelError for tensors that are missing or do not fit."""
    b = f"blk.{layer}."
    shared_expert = None
    if source.has(f"{b}ffn_up_shexp.weight"):
        shared_expert = load_ffn(source, h, layer, "_shexp")
    elif "dense_with_experts" in h.arch.quirks and source.has(f"{b}ffn_up.weight"):
        shared_expert = load_ffn(source, h, layer)
    own_norm = source.vector(f"{b}ffn_norm_exps.weight")
    router = source.linear(f"{b}ffn_gate_inp", h.n_embd)
    source.check_rows(f"{b}ffn_gate_inp.weight", h.experts.n)
    chunks = source.has(f"{b}ffn_up_chexps.weight")
    before = "experts_scaled_before" in h.arch.quirks
    experts = load_experts(source, f"{b}ffn_", "_exps", weighted_before=before)
    if before and len(experts.first) > 1:
        raise ModelError(
            f"adapters of {b}ffn_gate_exps and {b}ffn_up_exps are not supported, whose input "
            f"{h.arch.name} multiplies with a token's weight of the expert"
        )
    return MoEWeights(
        router=router,
        choice_bias=source.vector(f"{b}exp_probs_b.bias", f"{b}exp_probs_b.weight"),
        table=_load_table(source, h, layer),
        experts=experts,
        chunks=load_experts(source, f"{b}ffn_", "_chexps") if chunks else None,
        latent=_load_latent(source, h, b),
        norm=None if own_norm is None else NormWeights(own_norm, h.eps),
        shared_expert=shared_expert,
        shared_expert_gate=source.optional_linear(f"{b}ffn_gate_inp_shexp"),
    )


def _load_table(source: TensorSource, h: Hyperparameters, layer: int) -> Tensor | None:
    """Which experts each token has."""
    name = f"blk.{layer}.ffn_gate_tid2eid.weight"
    array = source.integers(name)
    if array is None:
        return None
    source.check_shape(name, (h.experts.used[layer], h.n_vocab))
    if array.min() < 0 or array.max() >= h.experts.n:
        raise ModelError(
            f"tensor {name} names experts {array.min()} to {array.max()}, of {h.experts.n}"
        )
    return source.upload(array)


def _load_latent(source: TensorSource, h: Hyperparameters, b: str) -> LatentWeights | None:
    name = next((n for n in LATENT_NAMES if source.has(f"{b}{n}_down.weight")), None)
    if name is None:
        return None
    norm = NormWeights(source.vector(f"{b}{name}_norm.weight"), h.eps)
    return LatentWeights(
        source.linear(f"{b}{name}_down", h.n_embd), norm, source.linear(f"{b}{name}_up")
    )


def moe(g: Graph, x: Rows, w: MoEWeights, layer: int) -> Rows:
    """The weighted sum of what a token's experts yield, and the shared expert."""
    h, arch, logits = g.h, g.h.arch, None
    if "early_router" in arch.quirks:
        with g.early() as stream:
            logits = g.linear(stream, w.router)
    if "early_experts" in arch.quirks and w.norm is not None:
        with g.early() as stream:
            chosen = _chosen(g, g.norm(stream, w.norm), w, layer, logits)
    else:
        chosen = _chosen(g, x, w, layer, logits)
    limit = h.experts.shared_limits[layer]
    if w.latent is not None:
        latent = g.combine(
            chosen.rows, chosen.choice, weighted=chosen.weighted, scale=h.residual_scale
        )
        latent = latent if w.latent.norm.is_copy else g.norm(latent, w.latent.norm)
        out = g.linear(latent, w.latent.up)
        return out if w.shared_expert is None else ffn(
            g, x, w.shared_expert, scale=1.0, limit=limit, add_to=out
        )  # fmt: skip
    extra = None if w.shared_expert is None else ffn(g, x, w.shared_expert, scale=1.0, limit=limit)
    gate = None if w.shared_expert_gate is None else g.linear(x, w.shared_expert_gate)
    out = g.combine(
        chosen.rows, chosen.choice, weighted=chosen.weighted, extra=extra, gate=gate,
        scale=h.residual_scale * (1.0 if w.shared_expert is None else arch.ffn_scale),
    )  # fmt: skip
    return out if w.chunks is None else _add_chunks(g, out, w, w.chunks, layer, chosen)


class _Chosen(Struct, frozen=True):
    """What the experts of each token yield. ``weighted``: by their weights when they are added
    up."""

    rows: Rows
    choice: Choice
    logits: Rows
    weighted: bool


def _chosen(g: Graph, x: Rows, w: MoEWeights, layer: int, logits: Rows | None) -> _Chosen:
    before = "experts_scaled_before" in g.h.arch.quirks
    logits = logits or g.linear(x, w.router)
    if w.latent is not None:
        x = g.linear(x, w.latent.down)
    choice = g.route(
        logits, routing(g.h, layer), bias=w.choice_bias, table=w.table, scales=w.experts.scales,
        weighted_before=before,
    )  # fmt: skip
    rows = experts(g, x, w.experts, choice, g.h.experts.limits[layer])
    return _Chosen(rows, choice, logits, weighted=not before)


def routing(h: Hyperparameters, layer: int) -> Routing:
    """How the router of a layer chooses experts."""
    e = h.experts
    return Routing(e.n, e.used[layer], e.scoring, e.normalize, e.scale, groups=e.groups)


def _add_chunks(
    g: Graph, out: Rows, w: MoEWeights, chunks: ExpertsWeights, layer: int, chosen: _Chosen
) -> Rows:
    """Smaller experts, each shared by a few of the others, read what those yield (GroveMoE)."""
    e = g.h.experts
    summed = g.combine(chosen.rows, chosen.choice, weighted=chosen.weighted, scale=1.0)
    shared = replace(routing(g.h, layer), divide=e.chunk[0])
    choice = g.route(chosen.logits, shared, bias=w.choice_bias, scales=chunks.scales)
    rows = experts(g, summed, chunks, choice, e.limits[layer])
    return g.combine(rows, choice, scale=g.h.residual_scale * e.chunk[1], add_to=out)


class ParallelExperts(Struct, frozen=True):
    """Experts beside an MLP, each with norms of its own (Gemma 4's 26B-A4B): of the stream x,
    after(mlp(before(x))) + experts_after(experts(experts_before(x))). The router reads
    router_norm(x), whose weight is the router's scale."""

    before: NormWeights
    mlp: FFNWeights
    after: NormWeights
    router_norm: NormWeights
    router: Linear
    experts_before: NormWeights
    experts: ExpertsWeights
    experts_after: NormWeights

    def __call__(self, g: Graph, x: Rows, layer: int) -> Rows:
        mlp = g.norm(ffn(g, g.norm(x, self.before), self.mlp), self.after)
        logits = g.linear(g.norm(x, self.router_norm), self.router)
        choice = g.route(logits, routing(g.h, layer), scales=self.experts.scales)
        limit = g.h.experts.limits[layer]
        chosen = experts(g, g.norm(x, self.experts_before), self.experts, choice, limit)
        return g.add(mlp, g.norm(g.combine(chosen, choice, scale=1.0), self.experts_after))


def load_parallel_experts(source: TensorSource, h: Hyperparameters, layer: int) -> ParallelExperts:
    """ModelError for tensors that are missing or do not fit."""
    b = f"blk.{layer}."

    def norm(name: str) -> NormWeights:
        weight = source.vector(f"{b}{name}.weight")
        if weight is None:
            raise ModelError(f"tensor {b}{name}.weight is missing")
        return NormWeights(weight, h.eps)

    scale = source.floats(f"{b}ffn_gate_inp.scale")
    if scale is None:
        raise ModelError(f"tensor {b}ffn_gate_inp.scale is missing")
    source.check_shape(f"{b}ffn_gate_inp.scale", (h.n_embd,))
    source.check_rows(f"{b}ffn_gate_inp.weight", h.experts.n)
    return ParallelExperts(
        before=norm("ffn_norm"),
        mlp=load_ffn(source, h, layer),
        after=norm("post_ffw_norm_1"),
        router_norm=NormWeights(source.upload(scale * h.n_embd**-0.5), h.eps),
        router=source.linear(f"{b}ffn_gate_inp", h.n_embd),
        experts_before=norm("pre_ffw_norm_2"),
        experts=load_experts(source, f"{b}ffn_", "_exps"),
        experts_after=norm("post_ffw_norm_2"),
    )
