"""What distinguishes architectures: facts that a GGUF file does not show, as data.

What the file shows (biases, tied output, norms and where they are, head sizes, experts,
parallel sublayers) is read from the file, never declared here.
"""

from __future__ import annotations

from collections.abc import Set
from typing import Literal, NamedTuple, get_args

from msgspec import Struct, field

from gguf_serve.engine.architecture.keys import Keys, Value, must
from gguf_serve.engine.architecture.needs import Needs
from gguf_serve.engine.architecture.ngrams import NGrams
from gguf_serve.engine.architecture.rope import RopeScaling
from gguf_serve.engine.architecture.sparse import Sparsity
from gguf_serve.engine.architecture.switch import Switch
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.request import Denoising, Pooling
from gguf_serve.kernels.matrix.activate import Xielu

Positions = Literal["interleaved", "neox", "alibi", "none"]
# Of a layer: norms of what its sublayers read, of the stream after them, or of what they yield; a
# draft's, which reads states too; convolutions (engine/layers/convolved.py).
LayerForm = Literal["norms_before", "norms_after", "normed_outputs", "drafting", "convolved"]
Scoring = Literal["softmax", "sigmoid", "softmax_chosen", "sqrt_softplus"]
# The numbers of ``pooling_type`` in GGUF files.
POOLINGS: tuple[Pooling, ...] = get_args(Pooling)


# What few have: each of these is said in the rows that have it, and looked for where it counts.
Quirk = Literal[
    # Positions and windows
    "positions_by_depth",  # RoPE in models of 32 layers, ALiBi in those of 40, else nothing
    "rope_if_finetuned",  # none where the file says rope.scaling.finetuned = false
    "yarn_one_multiplier",  # YaRN's two multipliers are one, see RopeScaling
    "yarn_without_magnitude",  # YaRN leaves the size of rotated values, unless the file says it
    "window_after_first",  # the first of n layers sees all keys, not the last
    "windows_from_64_layers",  # models with fewer layers have no windows
    "chunked_windows",  # a window is a token's own stretch, not the last ones
    "images_together_in_windows",  # an image's tokens see each other in windowed layers only
    "half_rope_outside_windows",  # of the values that are rotated in windowed layers
    "rope_factors_outside_windows",  # rope_freqs are those of layers that see all keys
    # Norms
    "weightless_norms",  # where the file has none, before sublayers and at the end
    "norm_by_epsilon",  # layer norm where the file has only its epsilon, else RMS norm
    "keys_of_target",  # all of a draft's K and V are those of its target's last layers
    "keys_of_states",  # a draft's K and V are made of states, but those of the block it drafts
    "layer_norm_after_heads",  # the last norm of a head of speculation is a layer norm
    "hidden_before_norm",  # hidden states are from before the last norm
    "states_before_norm",  # those that heads of speculation take are from before the last norm
    "normed_embedding",  # RMS norm without weight after the embedding
    "tiny_post_norm_eps",  # norms after sublayers have an epsilon of 1e-8
    "weightless_head_norms",  # where there is RoPE, and not in models of 128 experts
    "layer_qk_norm",  # that of heads is a layer norm of epsilon 1e-5
    # Mixers
    "qkv_in_thirds",  # attn_qkv has Q, K, V each as wide as Q
    "normed_values",  # RMS norm without weight of each head of V, which without attn_v is K
    "scores_by_head_size",  # attention scores are divided by the head size, not by its root
    "softplus_attention_gate",  # instead of a sigmoid
    "lightning_attention",  # where the file has attn_norm_2
    "negated_decay",  # ssm_a of Kimi's delta attention is negative, where the decay has a bound too
    "sigmoid_delta_gate",  # of what a delta net yields, instead of SiLU
    "interleaved_indexer_rope",  # over pairs (2i, 2i + 1) of an indexer's head
    "indexer_epsilon",  # an indexer's norms have the model's epsilon, not 1e-6
    "indexer_rope_last",  # over the last values of an indexer's head, not the first
    # FFN and experts
    "gelu_with_gate",  # instead of the activation of FFNs without
    "experts_unused",  # an FFN of experts is its activation alone, as in llama.cpp
    "experts_scaled_before",  # a token's expert weight multiplies the expert's input
    "early_router",  # it reads the stream before the layer's attention
    "early_experts",  # so do the experts, with their own norm, beside a dense FFN
    "dense_with_experts",  # a dense FFN beside the experts counts
    "glu_limit_first",  # swiglu_clamp_exp bounds the gate before its activation, not after
    "population_deviation",  # of sparse activations: by n; llama.cpp divides by n - 1
    "glu_limit_of_shared",  # it bounds the shared expert, too
    # Residuals and the head
    "minicpm_scales",  # residuals times 1.4 / sqrt(layers), logits times 256 / width, by default
    "normed_residuals",  # sublayers add to the normalized stream, times a scale
    "scaled_layers",  # layer_output_scale is of what a layer yields, not of added embeddings
    "softmax_rank_head",  # scores are shares of their sum
    "logits_of_last_ids",  # the output matrix has rows for the last ids alone
    "silent_images",  # tokens 4 to 8195 are those of images, which are not generated
    "denoises",  # a diffusion model: it has logits, though attention is not causal
    "gelu_rank_head",  # in the head of a reranker, instead of tanh
]


class Architecture(Struct, frozen=True):
    """One row of the table of architectures."""

    name: str
    needs: Needs  # tensors that files must have
    keys: Keys = field(default_factory=dict[str, Value])  # metadata that is read, with defaults
    mixed: bool = False  # not every layer has attention and an FFN or experts
    unused: tuple[str, ...] = ()  # ends of the names of tensors that some files have in vain
    stacks: tuple[str, ...] = ()  # what names of layers begin with, see stacks.py
    counted_stacks: tuple[str, ...] = ("",)  # what the keys begin with that count its layers
    layers: LayerForm = "norms_before"
    embedding_norm: bool = True  # token_embd_norm is of that, beside an output_norm
    # What hidden states go through in the end: Sentence Transformers' matrices, a narrow draft's
    projections: tuple[str, ...] = ("dense_2", "dense_3", "nextn.post_projection")
    # Positions: RoPE over pairs (2i, 2i + 1) or (i, i + n/2), ALiBi, or nothing
    positions: Positions = "interleaved"
    rope_layers: Literal["all", "windowed", "step", "step_first", "windowed_or_dense"] = "all"
    sections_interleaved: bool = False  # M-RoPE: pairs take turns in time, row and column
    yarn_multiplier: float = 0.0  # of the file's yarn_log_multiplier; 0: that does not count
    yarn_scores: bool = False  # see RopeScaling
    # Sliding windows; ``keys`` says which layers have them
    window_all: bool = False  # all layers
    window_rope_scaled: bool = True  # whether RoPE scaling holds for windowed layers
    # Norms
    layer_norm: bool = False  # layer norm instead of RMS norm
    head_norm_after_rope: bool = False
    # Attention
    wide_scale_layers: int = 0  # in models of so many layers, the head size there is n_embd/heads
    own_kv_layers: int = 0  # the first so many have K and V that later ones share; 0: all their own
    # FFN and experts
    activation: str = "silu"
    sparse_layers: int = 0  # the first so many have sparse FFNs, where no key says it
    scoring: Scoring = "softmax"
    normalize_experts: bool = False
    ffn_scale: float = 1.0  # of the sum of experts and what is beside them
    # Scales
    scale_embedding: bool = False  # by the square root of the embedding length
    divide_logits: bool = False  # by the logit scale, instead of multiplying
    quirks: Set[Quirk] = frozenset()

    @property
    def epsilon_key(self) -> str:
        """The key of the epsilon of its norms."""
        return f"attention.layer_norm_{'' if self.layer_norm else 'rms_'}epsilon"

    @property
    def all_keys(self) -> Keys:
        """What it reads beside the keys that all read."""
        return {**must(self.epsilon_key), **self.keys}

    @property
    def attention_gate(self) -> str:
        """The activation of attention's gate, where the file has one."""
        return "softplus" if "softplus_attention_gate" in self.quirks else "sigmoid"

    def glu(self, limit: float) -> str:
        """The name of a gated activation whose factors are bounded by a limit, if it is not 0."""
        late = limit and self.activation == "silu" and "glu_limit_first" not in self.quirks
        return "silu_late" if late else self.activation


class ExpertHyperparameters(Struct, frozen=True):
    """How many experts there are, and how a token's are chosen and weighted; 0: none."""

    n: int
    used: tuple[int, ...]  # per layer, by each token
    groups: tuple[int, int]  # of which a token's experts come from so many
    scale: float
    scoring: Scoring
    normalize: bool
    limits: tuple[float, ...]  # per layer, of gate and up; 0: none
    shared_limits: tuple[float, ...]  # the same of the expert that every token takes
    chunk: tuple[int, float]  # experts that share a smaller one, and its scale


class HeadSizes(NamedTuple):
    """Values of a head of Q and K, of one of V, and how many of the former RoPE turns."""

    qk: int
    v: int
    rotated: int


class Hyperparameters(Struct, frozen=True):
    """Sizes and constants of one model, from the metadata of its file."""

    arch: Architecture
    n_layers: int
    n_embd: int
    n_vocab: int
    n_ctx_train: int
    ngrams: NGrams | None  # of embeddings of several tokens
    switch: Switch | None  # of adapters that some tokens turn on
    n_positions: int  # that the model has learned one by one; 0: any
    n_heads: tuple[int, ...]  # per layer; 0: no attention there
    n_kv: tuple[int, ...]
    kv_layers: tuple[int, ...]  # per layer, whose K and V it attends to, as a rule its own
    head: int  # values of a head of Q and K
    head_v: int
    n_rot: int
    head_window: HeadSizes  # of windowed layers
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
    n_encoder: int  # layers of an encoder, whose output those after them attend to; 0: no such
    start_token: int  # the decoder's first one, where there is an encoder
    distance_buckets: int  # of distances that have a bias of their own; 0: none
    denoising: Denoising | None  # what a diffusion model does with that
    deepstack: tuple[int, ...]  # by layer, which part of an image's embeddings its output gets
    pooling: Pooling  # of embeddings, where nobody says
    rank_pooling: Pooling  # of what the ranking head reads
    labels: tuple[str, ...]  # of the ranking head's scores
    parallel: bool  # attention and FFN read the same stream, though each has its norm
    ssm_state: int  # values of state per channel, or of a key
    rescale_every: int  # after so many layers the stream is halved, as RWKV-6 has it; 0: never
    ssm_norms: bool  # step size, B and C have norms even without weights
    xielu: tuple[Xielu, ...]  # per layer, the numbers of its activation; empty: another
    kda_lower: float  # bound of the decay's logarithm in Kimi's delta attention; 0: none
    experts: ExpertHyperparameters
    sparsity_cutoffs: tuple[float, ...]  # per layer, of an FFN's gate (sparsify.cl); 0: none
    takes_states: bool = False  # it is a head of speculation, see heads.py
    n_embd_target: int = 0  # values of the states that it takes and gives, if not n_embd
    normed_residual: bool = False  # a draft's begins with the state after its norm
    n_embd_token: int = 0  # values of a token's embedding in the file
    group_norm: tuple[int, float] | None = None  # groups of channels and epsilon of such norms
    gives_states: bool = False  # those that its heads take are wanted of every step
    n_vocab_output: int = 0  # the first tokens, which alone have logits; 0: all
    image_experts: bool = False  # images have weights of their own, and there may be images

    @property
    def post_eps(self) -> float:
        """The epsilon of norms after sublayers."""
        return 1e-8 if "tiny_post_norm_eps" in self.arch.quirks else self.eps

    def head_sizes(self, layer: int) -> HeadSizes:
        """Those of a layer's heads."""
        return self.sizes_by_window(self.windowed[layer])

    def sizes_by_window(self, windowed: bool) -> HeadSizes:
        """Those of layers with a window, or of the others."""
        return self.head_window if windowed else HeadSizes(self.head, self.head_v, self.n_rot)

    @property
    def rope_as_windowed(self) -> tuple[bool, ...]:
        """Per layer, whether it has the RoPE of windowed layers. Where some layers have compressed
        keys, it is that of the others."""
        return tuple(ratio == 0 for ratio in self.compress_ratios) or self.windowed

    @property
    def n_deepstack(self) -> int:
        """Parts of an image's embeddings beside the one that takes the place of tokens."""
        return max(self.deepstack, default=0)

    @property
    def generates(self) -> bool:
        """Whether it has logits: an encoder has hidden states only."""
        return self.causal or self.denoising is not None

    @property
    def attention_width(self) -> int:
        """Values that attention reads."""
        return self.n_embd * (2 if self.arch.layers == "drafting" else 1)

    @property
    def state_size(self) -> int:
        """Values of a state, without residual streams."""
        return self.n_embd_target or self.n_embd

    @property
    def states_normed(self) -> bool:
        """Whether hidden states are from after the last norm."""
        as_heads = self.takes_states or self.gives_states
        return not (as_heads and "states_before_norm" in self.arch.quirks)

    @property
    def neox(self) -> bool:
        return self.positions == "neox"


def pooling_of(number: int, path: object) -> Pooling:
    """The name of a file's ``pooling_type``; ModelError for one that does not exist."""
    if not 0 <= number < len(POOLINGS):
        raise ModelError(
            f"{path}: unknown pooling_type {number}, expected 0 to {len(POOLINGS) - 1}"
        )
    return POOLINGS[number]
