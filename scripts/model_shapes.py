"""Shapes of models that people run: their metadata and tensors, for synthetic_model.py.

``SHAPES`` has them by name: real ones (``qwen3moe-30b-a3b``), and ``...-small`` ones of 8 layers of
width 1024, in which launches count as much as bytes. Sizes are those of the published models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from shape_parts import (
    CTX,
    VOCAB,
    Shape,
    attention,
    experts,
    ffn,
    set_heads,
    shared_expert,
    start,
    vectors,
)
from state_shapes import falcon_h1, granitehybrid, lfm2, mamba2, qwen3next, rwkv7

MAX_VOCAB = 256 + 256 * 256  # tokens of a byte or two, and the end's


def llama(
    layers: int = 32, embd: int = 4096, heads: int = 32, kv_heads: int = 8, ff: int = 14336,
    vocab: int = VOCAB, ctx: int = CTX, *, more_bits: bool = False,
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
    shape, head = start("llama", layers, embd, vocab, ctx), embd // heads
    shape.more_bits = more_bits
    set_heads(shape, heads, kv_heads, head)
    shape.keys["feed_forward_length"] = ff
    for i in range(layers):
        shape.add(*vectors(embd, "attn_norm", "ffn_norm"), at=i)
        shape.add(*attention(embd, heads, kv_heads, head), *ffn(embd, ff), at=i)
    return shape


def glm4moe(
    n_layers: int, width: int, heads: int, kv: int, ff: int, vocab: int = VOCAB, n_heads: int = 1
) -> Shape:
    """Dense layers, and after them ``n_heads`` heads that predict further tokens (MTP), with the
    model's embedding and output: no family of this size has both, this one's keys allow for it."""
    shape, n = start("glm4moe", n_layers + n_heads, width, vocab), n_layers + n_heads
    set_heads(shape, heads, kv, width // heads)
    shape.keys |= {
        "feed_forward_length": ff, "leading_dense_block_count": n, "nextn_predict_layers": n_heads,
    }  # fmt: skip
    for i in range(n):
        shape.add(*vectors(width, "attn_norm", "post_attention_norm"), at=i)
        shape.add(*attention(width, heads, kv, width // heads), *ffn(width, ff), at=i)
    for i in range(n_layers, n):
        norms = vectors(width, "nextn.enorm", "nextn.hnorm", "nextn.shared_head_norm")
        shape.add(("nextn.eh_proj.weight", (2 * width, width)), *norms, at=i)
    return shape


def qwen3moe(
    n_layers: int, width: int, heads: int, kv: int, head: int, ff: int, n: int, used: int,
    vocab: int = VOCAB,
) -> Shape:  # fmt: skip
    shape = start("qwen3moe", n_layers, width, vocab)
    set_heads(shape, heads, kv, head)
    shape.keys |= {
        "feed_forward_length": ff, "expert_feed_forward_length": ff, "expert_count": n,
        "expert_used_count": used,
    }  # fmt: skip
    for i in range(n_layers):
        shape.add(*vectors(width, "attn_norm", "ffn_norm"), at=i)
        shape.add(*vectors(head, "attn_q_norm", "attn_k_norm"), at=i)
        shape.add(*attention(width, heads, kv, head), *experts(width, ff, n), at=i)
    return shape


def gpt_oss(
    n_layers: int, width: int, heads: int, kv: int, head: int, ff: int, n: int, used: int,
    vocab: int = VOCAB,
) -> Shape:  # fmt: skip
    shape = start("gpt-oss", n_layers, width, vocab)
    set_heads(shape, heads, kv, head)
    shape.keys |= {
        "feed_forward_length": ff, "expert_feed_forward_length": ff, "expert_count": n,
        "expert_used_count": used, "attention.sliding_window": 128,
    }  # fmt: skip
    for i in range(n_layers):
        shape.add(*vectors(width, "attn_norm", "post_attention_norm"), at=i)
        shape.add(*attention(width, heads, kv, head), *experts(width, ff, n), at=i)
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
    shape = start("gemma3", n_layers, width, vocab, output=False)
    set_heads(shape, heads, kv, head)
    shape.keys |= {"feed_forward_length": ff, "attention.sliding_window": 512}
    norms = "attn_norm", "post_attention_norm", "ffn_norm", "post_ffw_norm"
    for i in range(n_layers):
        shape.add(*vectors(width, *norms), *vectors(head, "attn_q_norm", "attn_k_norm"), at=i)
        shape.add(*attention(width, heads, kv, head), *ffn(width, ff), at=i)
    return shape


def gemma4_e4b(
    n_layers: int, width: int, ff: int, per_layer: int, shared: int, vocab: int
) -> Shape:
    """Every sixth layer sees all tokens, with heads of 512; the last ``shared`` ones reuse the K
    and V of others."""
    shape = start("gemma4", n_layers, width, vocab, output=False)
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
        shape.add(*vectors(width, *norms), *vectors(head, "attn_q_norm"), at=i)
        attends = [*attention(width, 8, 2, head)]
        shape.add(*(attends if own else (attends[0], attends[3])), *ffn(width, ff), at=i)
        if own:
            shape.add(*vectors(head, "attn_k_norm"), at=i)
        shape.add(
            ("layer_output_scale.weight", (1,)), ("inp_gate.weight", (width, per_layer)),
            ("proj.weight", (per_layer, width)), at=i,
        )  # fmt: skip
    return shape


def deepseek2(
    n_layers: int, width: int, heads: int, ff: int, expert: int, n: int, used: int, vocab: int,
    q_rank: int = 0,
) -> Shape:  # fmt: skip
    """Latent attention; ``q_rank``: of Q's latent, 0 for none, as in the Lite models, which
    llama.cpp knows by their number of layers."""
    shape = start("deepseek2", n_layers, width, vocab)
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
    if q_rank:
        shape.keys["attention.q_lora_rank"] = q_rank
    for i in range(n_layers):
        shape.add(*vectors(width, "attn_norm", "ffn_norm"), at=i)
        if q_rank:
            shape.add(("attn_q_a.weight", (width, q_rank)), *vectors(q_rank, "attn_q_a_norm"), at=i)
        q = "attn_q_b.weight" if q_rank else "attn_q.weight"
        shape.add((q, (q_rank or width, heads * (nope + rot))), at=i)
        shape.add(
            ("attn_kv_a_mqa.weight", (width, rank + rot)), ("attn_kv_a_norm.weight", (rank,)),
            ("attn_k_b.weight", (nope, rank, heads)), ("attn_v_b.weight", (rank, value, heads)),
            ("attn_output.weight", (heads * value, width)), at=i,
        )  # fmt: skip
        if i == 0:
            shape.add(*ffn(width, ff), at=i)
            continue
        shape.add(*experts(width, expert, n), at=i)
        shape.add(*shared_expert(width, 2 * expert), at=i)
    return shape


SHAPES: Mapping[str, Callable[[], Shape]] = {
    "llama-7b": partial(llama, more_bits=True),
    "llama-draft": partial(llama, 12, 1024, 16, 4, 4096),  # for models of the same vocabulary
    "mtp-7b": partial(glm4moe, 32, 4096, 32, 8, 14336),
    "mtp-small": partial(glm4moe, 8, 1024, 16, 4, 2816),
    "llama-small": partial(llama, 8, 1024, 16, 4, 2816),
    "qwen3moe-30b-a3b": partial(qwen3moe, 48, 2048, 32, 4, 128, 768, 128, 8, MAX_VOCAB),
    "qwen3moe-10b-a1b": partial(qwen3moe, 16, 2048, 32, 4, 128, 768, 128, 8, MAX_VOCAB),
    "qwen3moe-small": partial(qwen3moe, 8, 1024, 16, 4, 64, 512, 32, 4),
    "gpt-oss-20b": partial(gpt_oss, 24, 2880, 64, 8, 64, 2880, 32, 4, MAX_VOCAB),
    "gpt-oss-small": partial(gpt_oss, 8, 1024, 16, 4, 64, 512, 32, 4),
    "gemma3-small": partial(gemma3, 8, 1024, 8, 2, 128, 4096),
    "gemma4-e4b": partial(gemma4_e4b, 42, 2560, 10240, 256, 18, MAX_VOCAB),
    "gemma4-small": partial(gemma4_e4b, 8, 1024, 2816, 64, 2, VOCAB),
    "lfm2-small": partial(lfm2, 8, 1024, 16, 4, 64, 2816),
    "mamba2-2.7b": partial(mamba2, 64, 2560),
    "mamba2-small": partial(mamba2, 8, 1024),
    "falcon-h1-small": partial(falcon_h1, 8, 1024, 16, 4, 64, 2816),
    "granitehybrid-small": partial(granitehybrid, 8, 1024, 16, 4, 64, 2816),
    "rwkv7-small": partial(rwkv7, 8, 1024),
    "qwen3next-small": partial(qwen3next, 8, 1024, 8, 2, 256, 512, 32, 4),
    "deepseek2-lite": partial(deepseek2, 27, 2048, 16, 10944, 1408, 64, 6, MAX_VOCAB),
    "deepseek2-small": partial(deepseek2, 8, 1024, 8, 2816, 512, 32, 4, VOCAB, 512),
}
