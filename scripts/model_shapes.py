"""Shapes of models that people run: their metadata and tensors, for synthetic_model.py.

``SHAPES`` has them by name: real ones (``qwen3moe-30b-a3b``), and ``...-small`` ones of 8 layers of
width 1024, in which launches count as much as bytes. Sizes are those of the published models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial

Number = int | float | bool
Tensor = tuple[str, tuple[int, ...]]  # name, sizes with the fastest first
VOCAB, CTX = 32000, 32768
MAX_VOCAB = 256 + 256 * 256  # tokens of a byte or two, and the end's


@dataclass
class Shape:
    """A model: its architecture, keys (without that in front) and tensors. A value that is a
    list is one for each layer."""

    arch: str
    keys: dict[str, Number | Sequence[Number]] = field(default_factory=dict)
    tensors: list[Tensor] = field(default_factory=list)

    def add(self, *tensors: Tensor, at: int | None = None) -> None:
        """Tensors, of layer ``at``."""
        lead = "" if at is None else f"blk.{at}."
        self.tensors += [(lead + name, sizes) for name, sizes in tensors]

    @property
    def n_params(self) -> int:
        total = 0
        for _, sizes in self.tensors:
            n = 1
            for size in sizes:
                n *= size
            total += n
        return total


def _start(
    arch: str, n_layers: int, width: int, vocab: int = VOCAB, ctx: int = CTX, *, output: bool = True
) -> Shape:
    shape = Shape(arch)
    shape.keys |= {
        "block_count": n_layers, "context_length": ctx, "embedding_length": width,
        "vocab_size": vocab, "attention.layer_norm_rms_epsilon": 1e-5,
    }  # fmt: skip
    shape.add(("token_embd.weight", (width, vocab)), ("output_norm.weight", (width,)))
    if output:
        shape.add(("output.weight", (width, vocab)))
    return shape


def _heads(shape: Shape, heads: int, kv: int, head: int) -> None:
    shape.keys |= {
        "attention.head_count": heads, "attention.head_count_kv": kv,
        "attention.key_length": head, "attention.value_length": head,
        "rope.dimension_count": head, "rope.freq_base": 1e6,
    }  # fmt: skip


def _attention(width: int, heads: int, kv: int, head: int) -> Iterator[Tensor]:
    yield "attn_q.weight", (width, heads * head)
    yield "attn_k.weight", (width, kv * head)
    yield "attn_v.weight", (width, kv * head)
    yield "attn_output.weight", (heads * head, width)


def _ffn(width: int, ff: int, name: str = "ffn") -> Iterator[Tensor]:
    yield f"{name}_gate.weight", (width, ff)
    yield f"{name}_up.weight", (width, ff)
    yield f"{name}_down.weight", (ff, width)


def _experts(width: int, ff: int, n: int) -> Iterator[Tensor]:
    yield "ffn_gate_inp.weight", (width, n)
    yield "ffn_gate_exps.weight", (width, ff, n)
    yield "ffn_up_exps.weight", (width, ff, n)
    yield "ffn_down_exps.weight", (ff, width, n)


def _vectors(width: int, *names: str) -> Iterator[Tensor]:
    yield from ((f"{name}.weight", (width,)) for name in names)


def _mamba2(width: int, inner: int, state: int, heads: int, groups: int) -> Iterator[Tensor]:
    channels = inner + 2 * groups * state
    yield "ssm_in.weight", (width, inner + channels + heads)
    yield "ssm_conv1d.weight", (4, channels)
    yield "ssm_conv1d.bias", (channels,)
    yield "ssm_dt.bias", (heads,)
    yield "ssm_a", (1, heads)
    yield "ssm_d", (1, heads)
    yield "ssm_norm.weight", (inner // groups, groups)
    yield "ssm_out.weight", (inner, width)


def _mamba2_keys(inner: int, state: int, heads: int, groups: int) -> dict[str, Number]:
    return {
        "ssm.conv_kernel": 4, "ssm.inner_size": inner, "ssm.state_size": state,
        "ssm.time_step_rank": heads, "ssm.group_count": groups,
    }  # fmt: skip


def llama(
    layers: int = 32, embd: int = 4096, heads: int = 32, kv_heads: int = 8, ff: int = 14336,
    vocab: int = VOCAB, ctx: int = CTX,
) -> Shape:  # fmt: skip
    """The defaults are the sizes of 7-billion-parameter models; ValueError for sizes that cannot
    be."""
    if min(layers, embd, heads, kv_heads, ff, ctx) < 1:
        raise ValueError(f"a size is below 1: {(layers, embd, heads, kv_heads, ff, ctx)}")
    if embd % 256 or ff % 256:
        raise ValueError(f"embd is {embd} and ff {ff}, not multiples of 256")
    if embd % (2 * heads) or heads % kv_heads:
        raise ValueError(f"{embd} columns, {heads} heads and {kv_heads} KV heads do not fit")
    if not 257 <= vocab <= MAX_VOCAB:
        raise ValueError(f"vocab is {vocab}, not between 257 and {MAX_VOCAB}")
    shape, head = _start("llama", layers, embd, vocab, ctx), embd // heads
    _heads(shape, heads, kv_heads, head)
    shape.keys["feed_forward_length"] = ff
    for i in range(layers):
        shape.add(*_vectors(embd, "attn_norm", "ffn_norm"), at=i)
        shape.add(*_attention(embd, heads, kv_heads, head), *_ffn(embd, ff), at=i)
    return shape


def qwen3moe(
    n_layers: int, width: int, heads: int, kv: int, head: int, ff: int, n: int, used: int,
    vocab: int = VOCAB,
) -> Shape:  # fmt: skip
    shape = _start("qwen3moe", n_layers, width, vocab)
    _heads(shape, heads, kv, head)
    shape.keys |= {
        "feed_forward_length": ff, "expert_feed_forward_length": ff, "expert_count": n,
        "expert_used_count": used,
    }  # fmt: skip
    for i in range(n_layers):
        shape.add(*_vectors(width, "attn_norm", "ffn_norm"), at=i)
        shape.add(*_vectors(head, "attn_q_norm", "attn_k_norm"), at=i)
        shape.add(*_attention(width, heads, kv, head), *_experts(width, ff, n), at=i)
    return shape


def gpt_oss(
    n_layers: int, width: int, heads: int, kv: int, head: int, ff: int, n: int, used: int,
    vocab: int = VOCAB,
) -> Shape:  # fmt: skip
    shape = _start("gpt-oss", n_layers, width, vocab)
    _heads(shape, heads, kv, head)
    shape.keys |= {
        "feed_forward_length": ff, "expert_feed_forward_length": ff, "expert_count": n,
        "expert_used_count": used, "attention.sliding_window": 128,
    }  # fmt: skip
    for i in range(n_layers):
        shape.add(*_vectors(width, "attn_norm", "post_attention_norm"), at=i)
        shape.add(*_attention(width, heads, kv, head), *_experts(width, ff, n), at=i)
        shape.add(
            ("attn_q.bias", (heads * head,)), ("attn_k.bias", (kv * head,)),
            ("attn_v.bias", (kv * head,)), ("attn_output.bias", (width,)),
            ("attn_sinks.weight", (heads,)), ("ffn_gate_inp.bias", (n,)),
            ("ffn_gate_exps.bias", (ff, n)), ("ffn_up_exps.bias", (ff, n)),
            ("ffn_down_exps.bias", (width, n)), at=i,
        )  # fmt: skip
    return shape


def gemma3(
    n_layers: int, width: int, heads: int, kv: int, head: int, ff: int, vocab: int = VOCAB
) -> Shape:
    shape = _start("gemma3", n_layers, width, vocab, output=False)
    _heads(shape, heads, kv, head)
    shape.keys |= {"feed_forward_length": ff, "attention.sliding_window": 512}
    norms = "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"
    for i in range(n_layers):
        shape.add(*_vectors(width, *norms), *_vectors(head, "attn_q_norm", "attn_k_norm"), at=i)
        shape.add(*_attention(width, heads, kv, head), *_ffn(width, ff), at=i)
    return shape


def gemma4_e4b(
    n_layers: int, width: int, ff: int, per_layer: int, shared: int, vocab: int
) -> Shape:
    """Every sixth layer sees all tokens, with heads of 512; the last ``shared`` ones reuse the K
    and V of others."""
    shape = _start("gemma4", n_layers, width, vocab, output=False)
    full = [i % 6 == 5 for i in range(n_layers)]
    shape.keys |= {
        "feed_forward_length": ff, "attention.head_count": 8, "attention.head_count_kv": 2,
        "attention.key_length": 512, "attention.value_length": 512,
        "attention.key_length_swa": 256, "attention.value_length_swa": 256,
        "rope.dimension_count": 512, "rope.dimension_count_swa": 256, "rope.freq_base": 1e6,
        "rope.freq_base_swa": 1e4, "attention.sliding_window": 512,
        "attention.sliding_window_pattern": [not each for each in full],
        "attention.shared_kv_layers": shared, "embedding_length_per_layer_input": per_layer,
        "final_logit_softcapping": 30.0,
    }  # fmt: skip
    shape.add(
        ("per_layer_token_embd.weight", (per_layer * n_layers, vocab)),
        ("per_layer_model_proj.weight", (width, per_layer * n_layers)),
        ("per_layer_proj_norm.weight", (per_layer,)), ("rope_freqs.weight", (256,)),
    )  # fmt: skip
    norms = "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm", "post_norm"
    for i, is_full in enumerate(full):
        head = 512 if is_full else 256
        own = i < n_layers - shared
        shape.add(*_vectors(width, *norms), *_vectors(head, "attn_q_norm"), at=i)
        attention = [*_attention(width, 8, 2, head)]
        shape.add(*(attention if own else (attention[0], attention[3])), *_ffn(width, ff), at=i)
        if own:
            shape.add(*_vectors(head, "attn_k_norm"), at=i)
        shape.add(
            ("layer_output_scale.weight", (1,)), ("inp_gate.weight", (width, per_layer)),
            ("proj.weight", (per_layer, width)), at=i,
        )  # fmt: skip
    return shape


def lfm2(n_layers: int, width: int, heads: int, kv: int, head: int, ff: int) -> Shape:
    """Attention in every third layer, short convolutions in the others."""
    shape = _start("lfm2", n_layers, width)
    shape.tensors = [
        ("token_embd_norm.weight", sizes) if name == "output_norm.weight" else (name, sizes)
        for name, sizes in shape.tensors
    ]
    _heads(shape, heads, kv, head)
    attends = [i % 3 == 2 for i in range(n_layers)]
    shape.keys |= {
        "feed_forward_length": ff, "shortconv.l_cache": 3,
        "attention.head_count_kv": [kv * each for each in attends],
    }  # fmt: skip
    for i, attention in enumerate(attends):
        shape.add(*_vectors(width, "attn_norm", "ffn_norm"), *_ffn(width, ff), at=i)
        if attention:
            shape.add(*_vectors(head, "attn_q_norm", "attn_k_norm"), at=i)
            shape.add(*_attention(width, heads, kv, head), at=i)
        else:
            shape.add(
                ("shortconv.in_proj.weight", (width, 3 * width)),
                ("shortconv.conv.weight", (3, width)),
                ("shortconv.out_proj.weight", (width, width)), at=i,
            )  # fmt: skip
    return shape


def mamba2(n_layers: int, width: int, state: int = 128, groups: int = 1) -> Shape:
    shape = _start("mamba2", n_layers, width)
    inner = 2 * width
    shape.keys |= _mamba2_keys(inner, state, inner // 64, groups)
    for i in range(n_layers):
        shape.add(*_vectors(width, "attn_norm"), at=i)
        shape.add(*_mamba2(width, inner, state, inner // 64, groups), at=i)
    return shape


def falcon_h1(n_layers: int, width: int, heads: int, kv: int, head: int, ff: int) -> Shape:
    """Attention and a state space side by side in every layer."""
    shape = _start("falcon-h1", n_layers, width)
    _heads(shape, heads, kv, head)
    inner = 2 * width
    shape.keys["feed_forward_length"] = ff
    shape.keys |= _mamba2_keys(inner, 128, inner // 64, 1)
    for i in range(n_layers):
        shape.add(*_vectors(width, "attn_norm", "ffn_norm"), *_ffn(width, ff), at=i)
        shape.add(*_attention(width, heads, kv, head), at=i)
        shape.add(*_mamba2(width, inner, 128, inner // 64, 1), at=i)
    return shape


def granitehybrid(n_layers: int, width: int, heads: int, kv: int, head: int, ff: int) -> Shape:
    """Attention in every fourth layer, a state space in the others."""
    shape = _start("granitehybrid", n_layers, width)
    _heads(shape, heads, kv, head)
    attends = [i % 4 == 3 for i in range(n_layers)]
    inner = 2 * width
    shape.keys["feed_forward_length"] = ff
    shape.keys["attention.head_count_kv"] = [kv * each for each in attends]
    shape.keys |= _mamba2_keys(inner, 128, inner // 64, 1)
    for i, attention in enumerate(attends):
        shape.add(*_vectors(width, "attn_norm", "ffn_norm"), *_ffn(width, ff), at=i)
        if attention:
            shape.add(*_attention(width, heads, kv, head), at=i)
        else:
            shape.add(*_mamba2(width, inner, 128, inner // 64, 1), at=i)
    return shape


def deepseek2(
    n_layers: int, width: int, heads: int, ff: int, expert: int, n: int, used: int, vocab: int
) -> Shape:
    """Latent attention without a latent of Q, as in the Lite models."""
    shape = _start("deepseek2", n_layers, width, vocab)
    rank, rot, nope, value = 512, 64, 128, 128
    shape.keys |= {
        "attention.head_count": heads, "attention.head_count_kv": 1,
        "attention.key_length": rank + rot, "attention.value_length": rank,
        "attention.key_length_mla": nope + rot, "attention.value_length_mla": value,
        "attention.kv_lora_rank": rank, "rope.dimension_count": rot, "rope.freq_base": 1e4,
        "leading_dense_block_count": 1, "feed_forward_length": ff, "expert_count": n,
        "expert_used_count": used, "expert_feed_forward_length": expert,
        "expert_shared_count": 2, "expert_weights_scale": 1.0,
    }  # fmt: skip
    for i in range(n_layers):
        shape.add(*_vectors(width, "attn_norm", "ffn_norm"), at=i)
        shape.add(
            ("attn_q.weight", (width, heads * (nope + rot))),
            ("attn_kv_a_mqa.weight", (width, rank + rot)), ("attn_kv_a_norm.weight", (rank,)),
            ("attn_k_b.weight", (nope, rank, heads)), ("attn_v_b.weight", (rank, value, heads)),
            ("attn_output.weight", (heads * value, width)), at=i,
        )  # fmt: skip
        if i == 0:
            shape.add(*_ffn(width, ff), at=i)
            continue
        shape.add(*_experts(width, expert, n), at=i)
        shared = [(f"{name[:-7]}_shexp.weight", sizes) for name, sizes in _ffn(width, 2 * expert)]
        shape.add(*shared, at=i)
    return shape


SHAPES: Mapping[str, Callable[[], Shape]] = {
    "llama-7b": llama,
    "llama-small": partial(llama, 8, 1024, 16, 4, 2816),
    "qwen3moe-30b-a3b": partial(qwen3moe, 48, 2048, 32, 4, 128, 768, 128, 8, MAX_VOCAB),
    "qwen3moe-small": partial(qwen3moe, 8, 1024, 16, 4, 64, 512, 32, 4),
    "gpt-oss-20b": partial(gpt_oss, 24, 2880, 64, 8, 64, 2880, 32, 4, MAX_VOCAB),
    "gpt-oss-small": partial(gpt_oss, 8, 1024, 16, 4, 64, 512, 32, 4),
    "gemma3-small": partial(gemma3, 8, 1024, 8, 2, 128, 4096),
    "gemma4-e4b": partial(gemma4_e4b, 42, 2560, 10240, 256, 18, MAX_VOCAB),
    "lfm2-small": partial(lfm2, 8, 1024, 16, 4, 64, 2816),
    "mamba2-2.7b": partial(mamba2, 64, 2560),
    "mamba2-small": partial(mamba2, 8, 1024),
    "falcon-h1-small": partial(falcon_h1, 8, 1024, 16, 4, 64, 2816),
    "granitehybrid-small": partial(granitehybrid, 8, 1024, 16, 4, 64, 2816),
    "deepseek2-lite": partial(deepseek2, 27, 2048, 16, 10944, 1408, 64, 6, MAX_VOCAB),
    "deepseek2-small": partial(deepseek2, 8, 1024, 8, 2816, 512, 32, 4, VOCAB),
}
