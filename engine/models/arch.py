"""What distinguishes architectures: facts that a GGUF file does not show, as data.

What the file shows (biases, tied output, norms and where they are, head sizes, experts,
parallel sublayers) is read from the file, never declared here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from engine.embedding import pooling_of
from engine.errors import ModelError
from engine.gguf import GGUFFile
from engine.models.rope import RopeScaling, read_rope_scaling, rescaled
from engine.ngrams import NGrams, read_ngrams
from engine.options import RopeOptions
from engine.request import Pooling

Positions = Literal["interleaved", "neox", "alibi", "none"]
Gate = Literal["softmax", "sigmoid", "softmax_chosen", "sqrt_softplus"]
GATES: dict[int, Gate] = {1: "softmax", 2: "sigmoid", 3: "softmax_chosen", 4: "sqrt_softplus"}


MOST_LAYERS = 4096


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row of the table of architectures."""

    name: str
    unused: tuple[str, ...] = ()  # ends of the names of tensors that some files have in vain
    needs: tuple[str, ...] = ()  # tensors of every layer, "|" between alternatives (checks.py)
    # Positions: RoPE over pairs (2i, 2i + 1) or (i, i + n/2), ALiBi, or nothing
    positions: Positions = "interleaved"
    positions_at_depth: tuple[tuple[int, Positions], ...] = ()  # in models of so many layers
    rope_layers: Literal["all", "windowed", "step", "step_first", "windowed_or_dense"] = "all"
    rope_step: int = 4  # every so many layers one has no RoPE ("step": the last, else the first)
    # Sliding windows
    window_pattern: int = 0  # every n-th layer sees all keys, the others a window; 0: all see all
    window_all: bool = False  # all layers have the window that the file names
    window_first: bool = False  # the first of n layers sees all keys, not the last
    window_default: int = 0  # where the file names no window
    window_min_layers: int = 0  # models with fewer layers have no windows
    window_chunked: bool = False  # the window is a token's own stretch, not the last ones
    window_rope_base: float = 0.0  # RoPE base of the windowed layers; 0: the model's
    window_rope_scaled: bool = True  # whether RoPE scaling holds for windowed layers
    sections_interleaved: bool = False  # M-RoPE: pairs take turns in time, row and column
    # Norms
    layer_norm: bool = False  # layer norm instead of RMS norm
    weightless_norms: bool = False  # norms where the file has none, before sublayers and at the end
    norm_embedding: bool = False  # RMS norm without weight after the embedding
    post_norm_eps: float = 0.0  # of norms after sublayers; 0: as the others
    norms_after: bool = False  # of the stream itself, after each sublayer (BERT)
    # Attention
    head_norm_after_rope: bool = False
    head_norm_weightless: bool = False  # where there is RoPE, and not in models of 128 experts
    lightning: bool = False  # linear attention where the file has attn_norm_2
    kda_negated: bool = False  # ssm_a is negative, where the decay has a bound too
    delta_gate: Literal["silu", "sigmoid"] = "silu"  # of what a delta net yields
    index_neox: bool = True  # the indexer's RoPE, over the first values of a head
    index_rope_last: bool = False
    attention_gate: Literal["sigmoid", "softplus"] = "sigmoid"  # where the file has the gate
    attention_scale: float = 0.0  # of the scores; 0: 1/sqrt(head)
    attention_scale_power: float = -0.5  # of the head size
    wide_scale_layers: int = 0  # in models of so many layers, the head size there is n_embd/heads
    attention_softcap: float = 0.0  # where the file names none
    fused_thirds: bool = False  # attn_qkv has Q, K, V each as wide as Q
    # FFN and experts
    activation: str = "silu"
    gate: Gate = "softmax"
    normalize_experts: bool = False
    experts_scaled_before: bool = False  # a token's expert weight multiplies the expert's input
    route_early: bool = False  # the router reads the stream before the layer's attention
    experts_early: bool = False  # so do the experts, with their own norm, beside a dense FFN
    dense_beside: bool = False  # a dense FFN beside the experts counts
    ffn_scale: float = 1.0  # of the sum of experts and what is beside them
    glu_limit_late: bool = True  # swiglu_clamp_exp bounds the gate after its activation
    # Scales
    scale_embedding: bool = False  # by the square root of the embedding length
    embedding_scale: float = 1.0  # where the file names none
    logit_softcap: float = 0.0  # where the file names none
    divide_logits: bool = False  # by the logit scale, instead of multiplying
    logit_scale: float = 1.0  # where the file names none
    scaled_residuals: bool = False  # the file's residual scale, else 1.4 / sqrt(layers)
    normed_residuals: bool = False  # sublayers add to the normalized stream, times a scale
    rank_activation: Literal["tanh", "gelu"] = "tanh"  # in the head of a reranker
    rope_unless_finetuned: bool = False  # rope.scaling.finetuned = false: no RoPE at all


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Sizes and constants of one model, from the metadata of its file."""

    arch: Architecture
    n_layers: int
    n_embd: int
    n_vocab: int
    n_ctx_train: int
    ngrams: NGrams | None  # of embeddings of several tokens
    n_positions: int  # that the model has learned one by one; 0: any
    n_heads: tuple[int, ...]  # per layer; 0: no attention there
    n_kv: tuple[int, ...]
    head: int  # values of a head of Q and K
    head_v: int
    n_rot: int
    eps: float
    positions: Positions
    rope_base: float
    rope_base_window: float
    rope_scaling: RopeScaling
    rope_scaling_window: RopeScaling  # of the windowed layers
    rope_sections: tuple[int, ...]  # pairs by component of a position (M-RoPE); empty: one for all
    rope: tuple[bool, ...]  # per layer
    window: int  # keys that a windowed layer's query sees
    windowed: tuple[bool, ...]  # per layer
    attention_softcap: float
    logit_softcap: float
    attention_scale: float
    alibi_bias: float
    mla_latent: int  # values of the latent vector that stands for K and V; 0: every head's own
    mla_scale: float  # of the scores, beside 1/sqrt(head)
    index_heads: int  # of the indexer of sparse attention
    index_head: int
    index_k: int  # keys that it chooses; 0: no indexer
    index_eps: float
    indexed: tuple[bool, ...]  # per layer, whether it has an indexer
    clamp_qkv: float
    value_scale: float
    temperature: tuple[float, int, float] | None  # growth, step, shift (kernels/rope.py)
    embedding_scale: float
    residual_scale: float
    logit_scale: float
    cycles: tuple[int, int, int] | None  # layers per stack, runs of the low one, of both (HRM)
    causal: bool  # tokens see those before them only
    image_experts: bool  # images have weights of their own, and there may be images
    n_deepstack: int  # first layers to whose output an image encoder adds embeddings
    pooling: Pooling  # of embeddings, where nobody says
    labels: tuple[str, ...]  # of the ranking head's scores
    parallel: bool  # attention and FFN read the same stream, though each has its norm
    ssm_state: int  # values of state per channel, or of a key
    ssm_norms: bool  # step size, B and C have norms even without weights
    kda_lower: float  # bound of the decay's logarithm in Kimi's delta attention; 0: none
    chunk_experts: tuple[int, float]  # experts that share a smaller one, and its scale
    n_experts: int
    n_experts_used: int
    expert_groups: tuple[int, int]
    expert_scale: float
    expert_gate: Gate
    normalize_experts: bool
    glu_limits: tuple[float, ...]  # per layer, of the experts; 0: none

    @property
    def post_eps(self) -> float:
        """The epsilon of norms after sublayers."""
        return self.arch.post_norm_eps or self.eps

    @property
    def neox(self) -> bool:
        return self.positions == "neox"


def read_hyperparameters(gguf: GGUFFile, arch: Architecture) -> Hyperparameters:
    """The numbers of a model; ModelError names a key that is missing or out of range."""
    key = gguf.arch_key
    n_layers = gguf.get_int(key("block_count"))
    if not 0 < n_layers <= MOST_LAYERS:  # it sizes tuples before any tensor is looked at
        raise ModelError(f"{gguf.path}: {key('block_count')} is {n_layers}")
    n_embd = gguf.get_int(key("embedding_length"))
    n_heads = per_layer_ints(gguf, "attention.head_count", n_layers, (0,) * n_layers)
    n_kv = per_layer_ints(gguf, "attention.head_count_kv", n_layers, n_heads)
    head_default = n_embd // max(*n_heads, 1)
    recurrent = _recurrent_layers(gguf, n_layers)
    attends = [not r and _attends(gguf, i) for i, r in enumerate(recurrent)]
    n_heads, n_kv = (
        tuple(n if on else 0 for n, on in zip(each, attends, strict=True))
        for each in (n_heads, n_kv)
    )
    if any(h and k and h % k for h, k in zip(n_heads, n_kv, strict=True)):
        raise ModelError(f"{gguf.path}: {n_heads} attention heads over {n_kv} KV heads")
    head = gguf.get_int(key("attention.key_length"), head_default)
    window, windowed = _windows(gguf, arch, n_layers)
    positions = _positions(gguf, arch, n_layers)
    base = gguf.get_float(key("rope.freq_base"), 10000.0)
    base_window = arch.window_rope_base or base
    scaling = read_rope_scaling(gguf)
    n_experts = gguf.get_int(key("expert_count"), 0)
    hparams = Hyperparameters(
        arch=arch,
        n_layers=n_layers,
        n_embd=n_embd,
        n_vocab=_n_vocab(gguf),
        n_ctx_train=gguf.get_int(key("context_length")),
        ngrams=read_ngrams(gguf),
        n_positions=_n_positions(gguf),
        n_heads=n_heads,
        n_kv=n_kv,
        head=head,
        head_v=gguf.get_int(key("attention.value_length"), head_default),
        n_rot=gguf.get_int(key("rope.dimension_count"), head),
        eps=_epsilon(gguf, arch),
        positions=positions,
        rope_base=base,
        rope_base_window=gguf.get_float(key("rope.freq_base_swa"), base_window),
        rope_scaling=scaling,
        rope_scaling_window=(
            scaling if arch.window_rope_scaled else RopeScaling(attention_factor=scaling.magnitude)
        ),
        rope_sections=_rope_sections(gguf),
        rope=_rope_layers(gguf, arch, positions, windowed),
        window=window,
        windowed=windowed,
        attention_softcap=gguf.get_float(key("attn_logit_softcapping"), arch.attention_softcap),
        logit_softcap=gguf.get_float(key("final_logit_softcapping"), arch.logit_softcap),
        attention_scale=_attention_scale(gguf, arch, n_layers, head, head_default),
        alibi_bias=_alibi_bias(gguf, positions),
        mla_latent=_mla_latent(gguf),
        mla_scale=scaling.mla_scale,
        index_heads=gguf.get_int(key("attention.indexer.head_count"), 0),
        index_head=gguf.get_int(key("attention.indexer.key_length"), 0),
        index_k=_index_k(gguf),
        index_eps=gguf.get_float(key("attention.layer_norm_epsilon"), 1e-6),
        indexed=tuple(f"blk.{i}.indexer.attn_q_b.weight" in gguf.tensors for i in range(n_layers)),
        clamp_qkv=gguf.get_float(key("attention.clamp_kqv"), 0.0),
        value_scale=gguf.get_float(key("attention.value_scale"), 0.0) or 1.0,
        temperature=_temperature(gguf, arch),
        embedding_scale=_embedding_scale(gguf, arch, n_embd),
        residual_scale=_residual_scale(gguf, arch, n_layers),
        logit_scale=_logit_scale(gguf, arch),
        cycles=_cycles(gguf, n_layers),
        causal=bool(gguf.metadata.get(key("attention.causal"), True)),
        image_experts=False,
        n_deepstack=gguf.get_int(key("n_deepstack_layers"), 0),
        pooling=pooling_of(gguf.get_int(key("pooling_type"), 0), gguf.path),
        labels=_labels(gguf),
        parallel=bool(gguf.metadata.get(key("use_parallel_residual"), False)),
        ssm_state=gguf.get_int(key("ssm.state_size"), 0),
        ssm_norms=bool(gguf.metadata.get(key("ssm.dt_b_c_rms"), False)),
        kda_lower=gguf.get_float(key("kda.gate_lower_bound"), 0.0),
        chunk_experts=(
            gguf.get_int(key("experts_per_group"), 1),
            gguf.get_float(key("expert_group_scale"), 1.0),
        ),
        n_experts=n_experts,
        n_experts_used=gguf.get_int(key("expert_used_count"), 0) if n_experts else 0,
        expert_groups=(
            gguf.get_int(key("expert_group_count"), 1) or 1,
            gguf.get_int(key("expert_group_used_count"), 1) or 1,
        ),
        expert_scale=gguf.get_float(key("expert_weights_scale"), 0.0) or 1.0,
        expert_gate=_expert_gate(gguf, arch),
        normalize_experts=bool(
            gguf.metadata.get(key("expert_weights_norm"), arch.normalize_experts)
        ),
        glu_limits=per_layer_floats(gguf, "swiglu_clamp_exp", n_layers),
    )
    _check(gguf, hparams)
    return hparams


def with_rope(h: Hyperparameters, options: RopeOptions) -> Hyperparameters:
    """The options hold where all keys are seen; windowed layers keep what the file says."""
    scaling = rescaled(h.rope_scaling, options)
    base = options.base or h.rope_base
    return replace(h, rope_base=base, rope_scaling=scaling, mla_scale=scaling.mla_scale)


def _check(gguf: GGUFFile, h: Hyperparameters) -> None:
    positive = {
        "block_count": h.n_layers,
        "embedding_length": h.n_embd,
        "context_length": h.n_ctx_train,
        "attention.key_length": h.head,
        "attention.value_length": h.head_v,
    }
    for name, value in positive.items():
        if not 0 < value < 1 << 24:
            raise ModelError(f"{gguf.path}: {gguf.arch_key(name)} is {value}")
    if any(h.rope) and (h.n_rot % 2 or not 0 < h.n_rot <= h.head):
        raise ModelError(
            f"{gguf.path}: {h.n_rot} rotated values (rope.dimension_count) in a head of {h.head}"
        )
    betas = [
        gguf.get_float(gguf.arch_key(f"activation.situ_{name}"), default)
        for name, default in (("beta", 4.0), ("linear_beta", 25.0))
    ]
    if h.arch.activation == "situ" and betas != [4.0, 25.0]:
        raise ModelError(f"{gguf.path}: an activation with situ_beta, situ_linear_beta {betas}")
    if h.n_experts and not 0 < h.n_experts_used <= h.n_experts <= 1024:
        raise ModelError(f"{gguf.path}: {h.n_experts_used} of {h.n_experts} experts are used")


def per_layer_ints(
    gguf: GGUFFile, name: str, n_layers: int, default: Sequence[int] | None
) -> tuple[int, ...]:
    """A number for every layer: the file has one for all, or an array."""
    key = gguf.arch_key(name)
    value = gguf.metadata.get(key)
    if value is None and default is not None:
        return tuple(default)
    if isinstance(value, np.ndarray) and value.dtype.kind in "iu":
        if len(value) != n_layers:
            raise ModelError(f"{gguf.path}: {key} has {len(value)} values for {n_layers} layers")
        return tuple(int(v) for v in value)
    return (gguf.get_int(key),) * n_layers


def per_layer_floats(gguf: GGUFFile, name: str, n_layers: int) -> tuple[float, ...]:
    """The same for floats; 0 where the file has none."""
    value = gguf.metadata.get(gguf.arch_key(name), 0.0)
    if isinstance(value, np.ndarray):
        return tuple(float(v) for v in value)[:n_layers]
    return (float(value),) * n_layers


def _labels(gguf: GGUFFile) -> tuple[str, ...]:
    value = gguf.metadata.get(gguf.arch_key("classifier.output_labels"), ())
    if isinstance(value, str) or not isinstance(value, Iterable):
        return ()
    return tuple(str(label) for label in value)


def _recurrent_layers(gguf: GGUFFile, n_layers: int) -> tuple[bool, ...]:
    """Layers with linear attention in the tensors of attention, where the file says which."""
    key = gguf.arch_key("attention.recurrent_layers")
    value = gguf.metadata.get(key)
    if isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(bool(v) for v in value)[:n_layers]
    return tuple(f"blk.{i}.ssm_conv1d_k.weight" in gguf.tensors for i in range(n_layers))


def _attends(gguf: GGUFFile, layer: int) -> bool:
    in_cycles = "hrm.z_l_init" in gguf.tensors  # a layer is a run through one of fewer
    return in_cycles or f"blk.{layer}.attn_output.weight" in gguf.tensors


def _cycles(gguf: GGUFFile, n_layers: int) -> tuple[int, int, int] | None:
    if "hrm.z_l_init" not in gguf.tensors:
        return None
    names = ("layers_per_stack", "l_cycles", "h_cycles")
    per_stack, low, high = (gguf.get_int(gguf.arch_key(f"hrm.{name}")) for name in names)
    if min(per_stack, low, high) < 1 or per_stack * (low + 1) * high != n_layers:
        raise ModelError(
            f"{gguf.path}: {high} times {low} low stacks and a high one of {per_stack} layers "
            f"are not {n_layers} layers"
        )
    if gguf.metadata.get(gguf.arch_key("hrm.prefix_lm")):
        raise ModelError(f"{gguf.path}: prompts that see both ways (hrm.prefix_lm)")
    return per_stack, low, high


def _windows(gguf: GGUFFile, arch: Architecture, n_layers: int) -> tuple[int, tuple[bool, ...]]:
    """The window, and which layers have it: by the file's pattern (flags, or "every n-th sees
    all"), or the architecture's."""
    key = gguf.arch_key("attention.sliding_window_pattern")
    value = gguf.metadata.get(key)
    window = gguf.get_int(gguf.arch_key("attention.sliding_window"), arch.window_default)
    if arch.window_all:
        return window, (window > 0,) * n_layers
    if not arch.window_pattern or window < 1 or n_layers < arch.window_min_layers:
        return 0, (False,) * n_layers
    if isinstance(value, Iterable) and not isinstance(value, str):
        flags = tuple(bool(v) for v in value)
        if len(flags) != n_layers:
            raise ModelError(f"{gguf.path}: {key} has {len(flags)} values for {n_layers} layers")
        return window, flags
    n = gguf.get_int(key, arch.window_pattern)
    shift = 0 if arch.window_first else 1
    return window, tuple(n > 0 and (i + shift) % n != 0 for i in range(n_layers))


def _positions(gguf: GGUFFile, arch: Architecture, n_layers: int) -> Positions:
    found = dict(arch.positions_at_depth).get(n_layers, arch.positions)
    if found == "interleaved" and _rope_sections(gguf):
        return "neox"  # M-RoPE, which for text is RoPE over pairs (i, i + n/2)
    return found


def _rope_sections(gguf: GGUFFile) -> tuple[int, ...]:
    sections = gguf.metadata.get(gguf.arch_key("rope.dimension_sections"))
    if not isinstance(sections, np.ndarray) or sections.dtype.kind not in "iu":
        return ()
    padded = [*(int(n) for n in sections), 0, 0, 0, 0][:4]
    if min(padded) < 0:
        raise ModelError(f"{gguf.path}: {gguf.arch_key('rope.dimension_sections')} is {padded}")
    return tuple(padded) if any(padded) else ()


def _rope_layers(
    gguf: GGUFFile, arch: Architecture, positions: Positions, windowed: tuple[bool, ...]
) -> tuple[bool, ...]:
    layers = range(len(windowed))
    pattern = gguf.metadata.get(gguf.arch_key("attention.rope_pattern"))
    finetuned = bool(gguf.metadata.get(gguf.arch_key("rope.scaling.finetuned"), True))
    if positions not in ("interleaved", "neox") or (arch.rope_unless_finetuned and not finetuned):
        return (False,) * len(windowed)
    if isinstance(pattern, Iterable) and not isinstance(pattern, str):
        return tuple(bool(v) for v in pattern)[: len(windowed)]
    if arch.rope_layers == "windowed" and any(windowed):
        return windowed
    if arch.rope_layers == "windowed_or_dense":
        dense = gguf.get_int(gguf.arch_key("leading_dense_block_count"), 0)
        return tuple(windowed[i] or i < dense for i in layers)
    if arch.rope_layers == "step":
        return tuple((i + 1) % arch.rope_step != 0 for i in layers)
    if arch.rope_layers == "step_first" and any(windowed):
        return tuple(i % arch.rope_step != 0 for i in layers)
    return (True,) * len(windowed)


def _attention_scale(
    gguf: GGUFFile, arch: Architecture, n_layers: int, head: int, head_default: int
) -> float:
    wide = arch.wide_scale_layers == n_layers
    default = arch.attention_scale or float(head_default if wide else head) ** (
        arch.attention_scale_power
    )
    names = ("attention.scale", "attention.output_scale")
    values = (gguf.get_float(gguf.arch_key(name), 0.0) for name in names)
    return next((value for value in values if value), default)


def _index_k(gguf: GGUFFile) -> int:
    """Keys that an indexer of DeepSeek's kind chooses; others, of blocks of keys, choose all."""
    if gguf.arch_key("attention.indexer.kpool") in gguf.metadata:
        return 0
    if not any(name.endswith(".indexer.attn_q_b.weight") for name in gguf.tensors):
        return 0
    return gguf.get_int(gguf.arch_key("attention.indexer.top_k"))


def _mla_latent(gguf: GGUFFile) -> int:
    """Files with matrices per head say how long a head's K is without the latent space."""
    if gguf.arch_key("attention.key_length_mla") not in gguf.metadata:
        return 0
    return gguf.get_int(gguf.arch_key("attention.kv_lora_rank"))


def _alibi_bias(gguf: GGUFFile, positions: Positions) -> float:
    default = 8.0 if positions == "alibi" else 0.0
    return gguf.get_float(gguf.arch_key("attention.max_alibi_bias"), default)


def _temperature(gguf: GGUFFile, arch: Architecture) -> tuple[float, int, float] | None:
    """How Q grows with its position: llama4 in layers without RoPE, mistral3 in all."""
    if arch.window_chunked:
        return 0.1, 8192, 1.0
    growth = gguf.get_float(gguf.arch_key("attention.temperature_scale"), 0.0)
    n_ctx = gguf.get_int(gguf.arch_key("context_length"))
    step = gguf.get_int(gguf.arch_key("rope.scaling.original_context_length"), n_ctx)
    return (growth, step, 0.0) if growth else None


def _embedding_scale(gguf: GGUFFile, arch: Architecture, n_embd: int) -> float:
    if arch.scale_embedding:
        return float(np.float32(np.sqrt(n_embd)))
    return gguf.get_float(gguf.arch_key("embedding_scale"), 0.0) or arch.embedding_scale


def _residual_scale(gguf: GGUFFile, arch: Architecture, n_layers: int) -> float:
    if arch.normed_residuals:  # it is of what outputs are added to
        return 1.0
    value = gguf.get_float(gguf.arch_key("residual_scale"), 0.0)
    return value or (1.4 / n_layers**0.5 if arch.scaled_residuals else 1.0)


def _logit_scale(gguf: GGUFFile, arch: Architecture) -> float:
    value = gguf.get_float(gguf.arch_key("logit_scale"), 0.0) or arch.logit_scale
    return 1.0 / value if arch.divide_logits else value


def _expert_gate(gguf: GGUFFile, arch: Architecture) -> Gate:
    kind = gguf.get_int(gguf.arch_key("expert_gating_func"), 0)
    if kind and kind not in GATES:
        raise ModelError(f"{gguf.path}: unknown expert_gating_func {kind}")
    return GATES.get(kind, arch.gate)


def _n_positions(gguf: GGUFFile) -> int:
    tensor = gguf.tensors.get("position_embd.weight")
    return 0 if tensor is None else tensor.shape[-1]


def _n_vocab(gguf: GGUFFile) -> int:
    tensor = gguf.tensors.get("token_embd.weight")
    if tensor is None or len(tensor.shape) != 2:
        raise ModelError(f"{gguf.path}: no matrix token_embd.weight")
    return tensor.shape[1]


def _epsilon(gguf: GGUFFile, arch: Architecture) -> float:
    name = "layer_norm_epsilon" if arch.layer_norm else "layer_norm_rms_epsilon"
    return gguf.get_float(gguf.arch_key(f"attention.{name}"), 1e-6)
