"""What distinguishes architectures: facts that a GGUF file does not show, as data.

What the file shows (biases, tied output, norms and where they are, head sizes, experts,
parallel sublayers) is read from the file, never declared here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from gguf_serve.engine.architecture.ngrams import NGrams
from gguf_serve.engine.architecture.rope import RopeScaling
from gguf_serve.engine.architecture.sparse import Sparsity
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.request import Pooling

Positions = Literal["interleaved", "neox", "alibi", "none"]
Gate = Literal["softmax", "sigmoid", "softmax_chosen", "sqrt_softplus"]
# The numbers of ``pooling_type`` in GGUF files.
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row of the table of architectures."""

    name: str
    unused: tuple[str, ...] = ()  # ends of the names of tensors that some files have in vain
    # Positions: RoPE over pairs (2i, 2i + 1) or (i, i + n/2), ALiBi, or nothing
    positions: Positions = "interleaved"
    positions_at_depth: tuple[tuple[int, Positions], ...] = ()  # in models of so many layers
    rope_layers: Literal["all", "windowed", "step", "step_first", "windowed_or_dense"] = "all"
    rope_step: int = 4  # every so many layers one has no RoPE ("step": the last, else the first)
    rope_unless_finetuned: bool = False  # rope.scaling.finetuned = false: no RoPE at all
    yarn_multiplier: float = 0.0  # of the file's yarn_log_multiplier; 0: that does not count
    yarn_one_multiplier: bool = False
    yarn_scores: bool = False  # see RopeScaling
    # Sliding windows
    window_pattern: int = 0  # every n-th layer sees all keys, the others a window; 0: all see all
    window_all: bool = False  # all layers have the window that the file names
    window_first: bool = False  # the first of n layers sees all keys, not the last
    window_default: int = 0  # where the file names no window
    window_min_layers: int = 0  # models with fewer layers have no windows
    window_chunked: bool = False  # the window is a token's own stretch, not the last ones
    window_rope_base: float = 0.0  # RoPE base of the windowed layers; 0: the model's
    window_rope_scaled: bool = True  # whether RoPE scaling holds for windowed layers
    yarn_magnitude: bool = True  # YaRN makes rotated values larger, where the file does not say
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
    experts_unused: bool = False  # an FFN of experts is its activation alone, as in llama.cpp
    experts_scaled_before: bool = False  # a token's expert weight multiplies the expert's input
    route_early: bool = False  # the router reads the stream before the layer's attention
    experts_early: bool = False  # so do the experts, with their own norm, beside a dense FFN
    dense_beside: bool = False  # a dense FFN beside the experts counts
    ffn_scale: float = 1.0  # of the sum of experts and what is beside them
    glu_limit_late: bool = True  # swiglu_clamp_exp bounds the gate after its activation
    glu_limit_beside: bool = False  # it bounds the expert beside the others, too
    # Scales
    scale_embedding: bool = False  # by the square root of the embedding length
    embedding_scale: float = 1.0  # where the file names none
    logit_softcap: float = 0.0  # where the file names none
    divide_logits: bool = False  # by the logit scale, instead of multiplying
    logit_scale: float = 1.0  # where the file names none
    scaled_residuals: bool = False  # the file's residual scale, else 1.4 / sqrt(layers)
    normed_residuals: bool = False  # sublayers add to the normalized stream, times a scale
    rank_activation: Literal["tanh", "gelu"] = "tanh"  # in the head of a reranker

    def glu(self, limit: float) -> str:
        """The name of a gated activation whose factors are bounded by a limit, if it is not 0."""
        late = limit and self.activation == "silu" and self.glu_limit_late
        return "silu_late" if late else self.activation


@dataclass(frozen=True, slots=True)
class ExpertHyperparameters:
    """How many experts there are, and how a token's are chosen and weighted; 0: none."""

    n: int
    used: int  # by each token
    groups: tuple[int, int]  # of which a token's experts come from so many
    scale: float
    gate: Gate
    normalize: bool
    limits: tuple[float, ...]  # per layer, of gate and up; 0: none
    limits_beside: tuple[float, ...]  # the same of the expert that every token takes
    chunk: tuple[int, float]  # experts that share a smaller one, and its scale


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
    sparsity: Sparsity | None  # None: all keys are attended to
    compress_ratios: tuple[int, ...]  # per layer, tokens that become one key; 0: none; or empty
    clamp_qkv: float
    value_scale: float
    temperature: tuple[float, int, float] | None  # growth, step, shift (kernels/attention/rope.py)
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
    experts: ExpertHyperparameters

    @property
    def post_eps(self) -> float:
        """The epsilon of norms after sublayers."""
        return self.arch.post_norm_eps or self.eps

    @property
    def rope_as_windowed(self) -> tuple[bool, ...]:
        """Per layer, whether it has the RoPE of windowed layers. Where some layers have compressed
        keys, it is that of the others."""
        return tuple(ratio == 0 for ratio in self.compress_ratios) or self.windowed

    @property
    def neox(self) -> bool:
        return self.positions == "neox"


def pooling_of(number: int, path: object) -> Pooling:
    """The name of a file's ``pooling_type``; ModelError for one that does not exist."""
    if not 0 <= number < len(POOLINGS):
        raise ModelError(f"{path}: unknown pooling_type {number}")
    return POOLINGS[number]
