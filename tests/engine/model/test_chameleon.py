"""Chameleon with its norms after sublayers (``swin_norm``): the published model, in NumPy.

llama.cpp's FFN reads the normed output of attention there, instead of the stream with that in it
(https://huggingface.co/docs/transformers/model_doc/chameleon). Its reference shows that the NumPy
model is right but for this.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt
import pytest
from conformance_data import arrays
from stepping import Stepper, nmse, sequence

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

Doubles = npt.NDArray[np.float64]
N_HEADS, N_KV, HEAD, EPS = 4, 2, 32, 1e-5


def logits(t: dict[str, Doubles], tokens: list[int], *, as_llama_cpp: bool) -> Doubles:
    x = t["token_embd.weight"][tokens]
    for layer in range(2):
        w = {name.removeprefix(f"blk.{layer}."): value for name, value in t.items()}
        y = rms_norm(attention(x, w), w["attn_norm.weight"])
        read = y if as_llama_cpp else x + y
        gate, up = (read @ w[f"ffn_{part}.weight"].T for part in ("gate", "up"))
        z = gate / (1 + np.exp(-gate)) * up @ w["ffn_down.weight"].T
        x = x + y + rms_norm(z, w["ffn_norm.weight"])
    return rms_norm(x, t["output_norm.weight"]) @ t["output.weight"].T


def attention(x: Doubles, w: dict[str, Doubles]) -> Doubles:
    q, k, v = ((x @ w[f"attn_{part}.weight"].T).reshape(len(x), -1, HEAD) for part in "qkv")
    q, k = (
        rotated(layer_norm(rows, w[f"attn_{part}_norm.weight"], w[f"attn_{part}_norm.bias"]))
        for part, rows in (("q", q), ("k", k))
    )
    k, v = (rows.repeat(N_HEADS // N_KV, axis=1) for rows in (k, v))
    scores = np.einsum("ihd,jhd->hij", q, k) / HEAD**0.5
    weights = np.exp(np.where(np.tri(len(x), dtype=bool), scores, -np.inf))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hij,jhd->ihd", weights, v).reshape(len(x), -1) @ w["attn_output.weight"].T


def rms_norm(x: Doubles, weight: Doubles) -> Doubles:
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + EPS) * weight


def layer_norm(x: Doubles, weight: Doubles, bias: Doubles) -> Doubles:
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + EPS) * weight + bias


def rotated(x: Doubles) -> Doubles:
    """RoPE over pairs (2i, 2i + 1) of [tokens, heads, HEAD]."""
    angles = np.arange(len(x))[:, None, None] * 10000.0 ** (-np.arange(0, HEAD, 2) / HEAD)
    pairs = (x[..., ::2] + 1j * x[..., 1::2]) * np.exp(1j * angles)
    return np.stack([pairs.real, pairs.imag], -1).reshape(x.shape)


@pytest.mark.slow
def test_norms_after_sublayers(
    device: Device, programs: Programs, conformance_model: Callable[[str], Path]
) -> None:
    """Whole, and a prompt and single tokens."""
    path, found = conformance_model("chameleon-swin"), arrays("chameleon-swin")
    tensors = {t.name: t.data.astype(np.float64) for t in gguf.GGUFReader(path).tensors}
    tokens, columns = found["tokens"].tolist(), found["columns"]
    theirs = logits(tensors, tokens, as_llama_cpp=True)[:, columns]
    assert nmse(theirs.astype(np.float32), found["logits"]) <= 1e-11
    expected = logits(tensors, tokens, as_llama_cpp=False)[:, columns]
    model = Stepper(path, device, programs)
    for counts in ([64], [40] + [1] * 24):
        result = model.run(sequence(tokens, 1, [3, 7]), counts)
        assert nmse(result[:, columns], expected) <= 1e-11
