"""Encoders of BERT's kind in NumPy, double precision, and small random models of them.

Written from the papers and the models' published code: BERT (https://arxiv.org/abs/1810.04805),
nomic-embed (https://arxiv.org/abs/2402.01613), jina-embeddings-v2
(https://arxiv.org/abs/2310.19923), ModernBERT (https://arxiv.org/abs/2412.13663).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Tensors = Mapping[str, npt.NDArray[np.float32]]
N_VOCAB, N_EMBD, N_HEADS, N_FF, N_LAYERS, N_POSITIONS, WINDOW = 128, 64, 4, 96, 3, 80, 16


def gelu(x: Floats) -> Floats:
    """The tanh approximation."""
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def silu(x: Floats) -> Floats:
    return x / (1 + np.exp(-x))


@dataclass(frozen=True)
class Encoder:
    """What distinguishes the encoders; names of tensors are GGUF's."""

    arch: str
    activation: Callable[[Floats], Floats] = gelu
    gate: str = ""  # how the FFN is gated: not, by a tensor, or by the first half of ffn_up
    fused: bool = False  # attn_qkv
    biases: bool = True
    rope_base: float = 0.0
    rope_base_window: float = 0.0
    alibi: bool = False
    learned: bool = False
    head_norms: bool = False  # of Q and K as a whole
    again: bool = False  # a second norm, of what the first yields plus the layer's input
    before: bool = False  # norms before the sublayers, none in the first layer's attention
    every: int = 0  # each so many layers one without a window
    experts_every: int = 0


ENCODERS = {
    "bert": Encoder("bert", learned=True),
    "nomic-bert": Encoder(
        "nomic-bert", silu, gate="tensor", fused=True, biases=False, rope_base=1000.0
    ),
    "nomic-bert-moe": Encoder("nomic-bert-moe", fused=True, rope_base=1000.0, experts_every=2),
    "jina-bert-v2": Encoder("jina-bert-v2", gate="half", alibi=True, head_norms=True),
    "jina-bert-v2 for code": Encoder("jina-bert-v2", gate="tensor", alibi=True, again=True),
    "jina-bert-v3": Encoder("jina-bert-v3", fused=True, rope_base=10000.0),
    "modern-bert": Encoder(
        "modern-bert",
        gate="half",
        fused=True,
        biases=False,
        rope_base=160000.0,
        rope_base_window=10000.0,
        before=True,
        every=3,
    ),
}


def layer_norm(x: Floats, tensors: Tensors, name: str) -> Floats:
    x = x - x.mean(-1, keepdims=True)
    x = x / np.sqrt((x**2).mean(-1, keepdims=True) + 1e-12)
    return x * tensors[f"{name}.weight"] + tensors.get(f"{name}.bias", 0.0)


def linear(x: Floats, tensors: Tensors, name: str) -> Floats:
    return x @ tensors[f"{name}.weight"].T.astype(np.float64) + tensors.get(f"{name}.bias", 0.0)


def rotated(x: Floats, base: float) -> Floats:
    """x: [tokens, heads, head], pairs (i, i + head / 2)."""
    half = x.shape[-1] // 2
    angles = np.arange(len(x))[:, None] * base ** -(np.arange(half) / half)
    cos, sin = np.cos(angles)[:, None], np.sin(angles)[:, None]
    a, b = x[..., :half], x[..., half:]
    return np.concatenate([a * cos - b * sin, a * sin + b * cos], axis=-1)


def attention(e: Encoder, t: Tensors, b: str, layer: int, x: Floats, n_heads: int) -> Floats:
    n, width = x.shape
    if e.fused:
        q, k, v = np.split(linear(x, t, f"{b}attn_qkv"), 3, axis=-1)
    else:
        q, k, v = (linear(x, t, f"{b}attn_{part}") for part in "qkv")
    if e.head_norms:
        q, k = layer_norm(q, t, f"{b}attn_q_norm"), layer_norm(k, t, f"{b}attn_k_norm")
    q, k, v = (part.reshape(n, n_heads, width // n_heads) for part in (q, k, v))
    windowed = e.every > 0 and layer % e.every != 0
    base = e.rope_base_window if windowed else e.rope_base
    if base:
        q, k = rotated(q, base), rotated(k, base)
    scores = np.einsum("qhd,khd->hqk", q, k) / np.sqrt(width // n_heads)
    distance = np.abs(np.arange(n)[:, None] - np.arange(n))
    if e.alibi:
        scores -= (2.0 ** (-8 * np.arange(1, n_heads + 1) / n_heads))[:, None, None] * distance
    if windowed:
        scores = np.where(distance > WINDOW // 2, -np.inf, scores)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return linear(np.einsum("hqk,khd->qhd", weights, v).reshape(n, width), t, f"{b}attn_output")


def experts(e: Encoder, t: Tensors, b: str, x: Floats) -> Floats:
    """Two of the experts, weighted with the softmax over all."""
    logits = linear(x, t, f"{b}ffn_gate_inp")
    weights = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    out = np.zeros_like(x)
    for row, token, weight in zip(out, x, weights, strict=True):
        for i in np.argsort(-weight)[:2]:
            hidden = e.activation(t[f"{b}ffn_up_exps.weight"][i].astype(np.float64) @ token)
            row += weight[i] * (t[f"{b}ffn_down_exps.weight"][i] @ hidden)
    return out


def ffn(e: Encoder, t: Tensors, b: str, x: Floats) -> Floats:
    if f"{b}ffn_gate_inp.weight" in t:
        return experts(e, t, b, x)
    up = linear(x, t, f"{b}ffn_up")
    if e.gate == "tensor":
        hidden = e.activation(linear(x, t, f"{b}ffn_gate")) * up
    elif e.gate == "half":
        gate, up = np.split(up, 2, axis=-1)
        hidden = e.activation(gate) * up
    else:
        hidden = e.activation(up)
    return linear(hidden, t, f"{b}ffn_down")


def hidden_states(e: Encoder, t: Tensors, tokens: list[int], n_heads: int = N_HEADS) -> Floats:
    """The last layer's output for each token: float64 [tokens, n_embd]."""
    x = t["token_embd.weight"][tokens].astype(np.float64)
    if "token_types.weight" in t:
        x = x + t["token_types.weight"][0]
    if e.learned:
        x = x + t["position_embd.weight"][: len(tokens)]
    x = layer_norm(x, t, "token_embd_norm")
    layer = 0
    while f"blk.{layer}.attn_output.weight" in t:
        b = f"blk.{layer}."
        if e.before:
            normed = layer_norm(x, t, f"{b}attn_norm") if layer else x
            x = x + attention(e, t, b, layer, normed, n_heads)
            x = x + ffn(e, t, b, layer_norm(x, t, f"{b}ffn_norm"))
        else:
            y = layer_norm(x + attention(e, t, b, layer, x, n_heads), t, f"{b}attn_output_norm")
            x = layer_norm(x + y, t, f"{b}attn_norm_2") if e.again else y
            x = layer_norm(x + ffn(e, t, b, x), t, f"{b}layer_output_norm")
        layer += 1
    return layer_norm(x, t, "output_norm") if e.before else x


def shapes(e: Encoder) -> dict[str, tuple[int, ...]]:
    """The matrices of a small model, rows first, and its norms."""
    d = N_EMBD
    found: dict[str, tuple[int, ...]] = {"token_embd": (N_VOCAB, d), "token_embd_norm": (d,)}
    if e.learned:
        found["position_embd"] = (N_POSITIONS, d)
    if not e.before:
        found["token_types"] = (2, d)
    else:
        found["output_norm"] = (d,)
    for layer in range(N_LAYERS):
        b = f"blk.{layer}."
        names = ["attn_qkv"] if e.fused else ["attn_q", "attn_k", "attn_v"]
        found |= {b + name: (3 * d // len(names), d) for name in names}
        found[f"{b}attn_output"] = (d, d)
        if e.experts_every and layer % e.experts_every == 1:
            found |= {f"{b}ffn_gate_inp": (8, d), f"{b}ffn_up_exps": (8, N_FF, d)}
            found[f"{b}ffn_down_exps"] = (8, d, N_FF)
        else:
            found[f"{b}ffn_up"] = ((1 + (e.gate == "half")) * N_FF, d)
            found[f"{b}ffn_down"] = (d, N_FF)
            if e.gate == "tensor":
                found[f"{b}ffn_gate"] = (N_FF, d)
        norms = ["attn_norm"] * (layer > 0) + ["ffn_norm"]
        if not e.before:
            norms = ["attn_output_norm", "layer_output_norm", *["attn_norm_2"] * e.again]
        norms += ["attn_q_norm", "attn_k_norm"] * e.head_norms
        found |= {b + name: (d,) for name in norms}
    return found


def random_tensors(e: Encoder) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(7)
    tensors: dict[str, npt.NDArray[np.float32]] = {}
    for name, shape in shapes(e).items():
        array = rng.standard_normal(shape, dtype=np.float32)
        if len(shape) == 1:
            tensors[f"{name}.weight"] = 1 + 0.1 * array
        else:
            scale = 1.0 if "embd" in name or "types" in name else shape[-1] ** -0.5
            tensors[f"{name}.weight"] = array * np.float32(scale)
        matrix = len(shape) == 2 and name.startswith("blk") and "gate_inp" not in name
        if (len(shape) == 1 and not e.before) or (matrix and e.biases):
            bias = rng.standard_normal(shape[:1], dtype=np.float32)
            tensors[f"{name}.bias"] = 0.1 * bias
    return tensors


def write_model(
    path: Path, e: Encoder, tensors: Tensors, kv: Mapping[str, int | float] | None = None
) -> Path:
    """A GGUF file of the model; ``kv``: more of its metadata."""
    writer = gguf.GGUFWriter(path, e.arch)
    writer.add_vocab_size(N_VOCAB)
    writer.add_context_length(N_POSITIONS)
    writer.add_embedding_length(N_EMBD)
    writer.add_block_count(N_LAYERS)
    writer.add_feed_forward_length(N_FF)
    writer.add_head_count(N_HEADS)
    writer.add_layer_norm_eps(1e-12)
    writer.add_causal_attention(False)
    writer.add_pooling_type(gguf.PoolingType.MEAN)
    if e.rope_base:
        writer.add_rope_freq_base(e.rope_base)
    if e.every:
        writer.add_float32(f"{e.arch}.rope.freq_base_swa", e.rope_base_window)
        writer.add_sliding_window(WINDOW)
    if e.experts_every:
        writer.add_expert_count(8)
        writer.add_expert_used_count(2)
    writer.add_tokenizer_model("no_vocab")
    for key, value in (kv or {}).items():
        if isinstance(value, int):
            writer.add_uint32(key, value)
        else:
            writer.add_float32(key, value)
    for name, array in tensors.items():
        writer.add_tensor(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
