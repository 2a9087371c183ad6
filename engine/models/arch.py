"""What distinguishes architectures: facts that a GGUF file does not show, as data.

What the file shows (biases, tied output, Q/K norms, norms after sublayers, head sizes) is
read from the file, never declared here.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from engine.errors import ModelError
from engine.gguf import GGUFFile


@dataclass(frozen=True, slots=True)
class Architecture:
    """One row of the table of architectures."""

    name: str
    neox_rope: bool = False  # rotated pairs (i, i + n/2) instead of (2i, 2i + 1)
    activation: Literal["silu", "gelu"] = "silu"
    scale_embedding: bool = False  # by the square root of the embedding length
    window_pattern: int = 0  # every n-th layer sees all keys, the others a window; 0: all see all
    window_rope_base: float = 0.0  # RoPE base of the windowed layers; 0: the model's
    layer_norm: bool = False  # layer norm instead of RMS norm


@dataclass(frozen=True, slots=True)
class Hyperparameters:
    """Sizes and constants of one model, from the metadata of its file."""

    arch: Architecture
    n_layers: int
    n_embd: int
    n_vocab: int
    n_ctx_train: int
    n_heads: tuple[int, ...]  # per layer
    n_kv: tuple[int, ...]
    n_ff: tuple[int, ...]
    head: int  # values of a head of Q and K
    head_v: int
    n_rot: int
    eps: float
    rope_base: float
    rope_factor: float  # linear scaling: positions are divided by it
    window: int  # keys that a windowed layer's query sees
    windowed: tuple[bool, ...]  # per layer
    attention_softcap: float
    logit_softcap: float
    attention_scale: float

    def frequencies(
        self, factors: npt.NDArray[np.float32] | None, *, windowed: bool
    ) -> npt.NDArray[np.float32]:
        """RoPE's angle per position of each pair, float32 [n_rot / 2].

        ``factors`` divide them one by one (``rope_freqs.weight``, Llama 3's scaling).
        """
        local = windowed and self.arch.window_rope_base > 0
        base = self.arch.window_rope_base if local else self.rope_base
        exponents = np.arange(0, self.n_rot, 2, dtype=np.float64) / self.n_rot
        result = base**-exponents / (1.0 if local else self.rope_factor)
        if factors is not None:
            result = result / factors[: len(result)].astype(np.float64)
        return result.astype(np.float32)


def read_hyperparameters(gguf: GGUFFile, arch: Architecture) -> Hyperparameters:
    """The numbers of a model; ModelError names a key that is missing or out of range."""
    key = gguf.arch_key
    n_layers = _n_layers(gguf)
    n_embd = gguf.get_int(key("embedding_length"))
    n_heads = _per_layer(gguf, "attention.head_count", n_layers, None)
    n_kv = _per_layer(gguf, "attention.head_count_kv", n_layers, n_heads)
    if min(n_heads) < 1 or min(n_kv) < 1 or any(h % k for h, k in zip(n_heads, n_kv, strict=True)):
        raise ModelError(f"{gguf.path}: {n_heads} attention heads over {n_kv} KV heads")
    head = gguf.get_int(key("attention.key_length"), n_embd // n_heads[0])
    hparams = Hyperparameters(
        arch=arch,
        n_layers=n_layers,
        n_embd=n_embd,
        n_vocab=_n_vocab(gguf),
        n_ctx_train=gguf.get_int(key("context_length")),
        n_heads=n_heads,
        n_kv=n_kv,
        n_ff=_per_layer(gguf, "feed_forward_length", n_layers, None),
        head=head,
        head_v=gguf.get_int(key("attention.value_length"), n_embd // n_heads[0]),
        n_rot=gguf.get_int(key("rope.dimension_count"), head),
        eps=_epsilon(gguf, arch),
        rope_base=gguf.get_float(key("rope.freq_base"), 10000.0),
        rope_factor=_rope_factor(gguf),
        window=gguf.get_int(key("attention.sliding_window"), 0),
        windowed=_windowed(gguf, arch, n_layers),
        attention_softcap=gguf.get_float(key("attn_logit_softcapping"), 0.0),
        logit_softcap=gguf.get_float(key("final_logit_softcapping"), 0.0),
        attention_scale=gguf.get_float(key("attention.scale"), 0.0) or head**-0.5,
    )
    _check(gguf, hparams)
    return hparams


def _n_layers(gguf: GGUFFile) -> int:
    """The number of layers; each has a tensor at least, so no file can claim too many."""
    n_layers = gguf.get_int(gguf.arch_key("block_count"))
    if not 0 < n_layers <= len(gguf.tensors):
        raise ModelError(
            f"{gguf.path}: {gguf.arch_key('block_count')} is {n_layers}, with "
            f"{len(gguf.tensors)} tensors in the file"
        )
    return n_layers


def _check(gguf: GGUFFile, h: Hyperparameters) -> None:
    positive = {
        "embedding_length": h.n_embd,
        "context_length": h.n_ctx_train,
        "attention.key_length": h.head,
        "attention.value_length": h.head_v,
        "feed_forward_length": min(h.n_ff),
    }
    for name, value in positive.items():
        if not 0 < value < 1 << 24:
            raise ModelError(f"{gguf.path}: {gguf.arch_key(name)} is {value}")
    if h.n_rot % 2 or not 0 < h.n_rot <= h.head:
        raise ModelError(
            f"{gguf.path}: {h.n_rot} rotated values (rope.dimension_count) in a head of {h.head}"
        )


def _per_layer(
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


def _windowed(gguf: GGUFFile, arch: Architecture, n_layers: int) -> tuple[bool, ...]:
    """Which layers have a window: the file's pattern (flags, or "every n-th sees all"), or the
    architecture's."""
    key = gguf.arch_key("attention.sliding_window_pattern")
    value = gguf.metadata.get(key)
    if not arch.window_pattern or gguf.get_int(gguf.arch_key("attention.sliding_window"), 0) < 1:
        return (False,) * n_layers
    if isinstance(value, Iterable) and not isinstance(value, str):
        flags = tuple(bool(v) for v in value)
        if len(flags) != n_layers:
            raise ModelError(f"{gguf.path}: {key} has {len(flags)} values for {n_layers} layers")
        return flags
    n = gguf.get_int(key, arch.window_pattern)
    return tuple(n > 0 and (i + 1) % n != 0 for i in range(n_layers))


def _n_vocab(gguf: GGUFFile) -> int:
    tensor = gguf.tensors.get("token_embd.weight")
    if tensor is None or len(tensor.shape) != 2:
        raise ModelError(f"{gguf.path}: no matrix token_embd.weight")
    return tensor.shape[1]


def _epsilon(gguf: GGUFFile, arch: Architecture) -> float:
    name = "layer_norm_epsilon" if arch.layer_norm else "layer_norm_rms_epsilon"
    return gguf.get_float(gguf.arch_key(f"attention.{name}"))


def _rope_factor(gguf: GGUFFile) -> float:
    """The linear scaling factor; ModelError for a kind of scaling that is not known."""
    kind = gguf.get_str(gguf.arch_key("rope.scaling.type"), "")
    factor = gguf.get_float(gguf.arch_key("rope.scaling.factor"), 0.0)
    if kind in ("", "linear"):
        return factor or gguf.get_float(gguf.arch_key("rope.scale_linear"), 0.0) or 1.0
    if kind == "none":
        return 1.0
    raise ModelError(f"{gguf.path}: RoPE scaling {kind!r} is not supported yet")
