"""Logits within a bound (softcap.cl)."""

from __future__ import annotations

from gguf_serve.kernels.opencl.tape import OUTPUTS, Per, Tape
from gguf_serve.kernels.opencl.tensor import Tensor


def softcap(tape: Tape, logits: Tensor, cap: float) -> None:
    """logits = cap * tanh(logits / cap), float32 [n, n_vocab]."""
    n_vocab = logits.shape[1]
    args = {"logits": logits, "n_vocab": n_vocab, "cap": cap}
    tape.add("rows/softcap.cl", "softcap", [], args, (-(-n_vocab // 16), Per(OUTPUTS)))
