"""Writes a model's reference for tests/data/conformance/logits: what llama.cpp computes with it.

    other-venv/bin/python scripts/make_reference.py model.gguf reference.npz

Runs in an interpreter with numpy and llama-cpp-python. The file has

    tokens  int32 [n]             random ones, decoded at positions 0 to n-1
    logits  float32 [n, n_vocab]  after each of them

by llama.cpp's backend for CPUs with an f32 KV cache and without flash attention. ``--check``
compares with the reference that is there instead, with the exit code 1 if they are not the same.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int32]
Floats = npt.NDArray[np.float32]
N_TOKENS, SEED = 64, 7  # of all references, so that those of the same vocabulary have the same
F32 = 0  # of ggml's types
# Processors add in different orders: 1e-13, but up to 3e-10 with GELU, of which llama.cpp has a
# table of halves, so that the last bit of an input can choose another entry.
NMSE = 1e-9


def main() -> None:
    args = parse_args()
    if args.check:
        with np.load(args.reference) as arrays:
            tokens, expected = arrays["tokens"], arrays["logits"]
        error = nmse(logits(args.model, tokens), expected)
        print(f"{args.reference}: NMSE {error:.1e}")
        sys.exit(int(not error <= NMSE))
    tokens = random_tokens(vocabulary_size(args.model), args.n_tokens)
    rows = logits(args.model, tokens)
    if np.isnan(rows).any():
        sys.exit(f"{args.model}: the logits are not numbers")
    found: dict[str, Any] = {"tokens": tokens, "logits": rows}
    if args.pooled:
        found["pooled"] = pooled(args.model, tokens)
    np.savez_compressed(args.reference, **found)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", type=Path, help="a GGUF file")
    parser.add_argument("reference", type=Path, help="the .npz file")
    parser.add_argument("--n-tokens", type=int, default=N_TOKENS, help="(%(default)s)")
    parser.add_argument("--pooled", action="store_true", help="and the prompt's vector, or scores")
    parser.add_argument("--check", action="store_true", help="compare, and write nothing")
    return parser.parse_args()


def random_tokens(n_vocab: int, n_tokens: int) -> Ints:
    return np.random.default_rng(SEED).integers(n_vocab, size=n_tokens).astype(np.int32)


def nmse(rows: Floats, expected: Floats) -> float:
    """The mean square of the differences, relative to the expected values'."""
    a, b = rows.astype(np.float64), expected.astype(np.float64)
    return float(np.sum((a - b) ** 2) / np.sum(b**2))


def vocabulary_size(path: Path) -> int:
    params = llama.llama_model_default_params()
    params.vocab_only = True
    model = _loaded(path, params)
    size = int(llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)))
    llama.llama_model_free(model)
    return size


def logits(path: Path, tokens: Ints, *, flash: bool = False) -> Floats:
    """The logits after each token: float32 [tokens, n_vocab]."""
    model_params = llama.llama_model_default_params()
    model_params.n_gpu_layers = 0
    model = _loaded(path, model_params)
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(512, len(tokens))
    params.type_k = params.type_v = F32
    params.flash_attn_type = int(flash)
    context: Any = llama.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError(f"llama.cpp makes no context of {path}")
    _decode(context, tokens, path)
    shape = (llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)),)
    rows = [
        np.ctypeslib.as_array(llama.llama_get_logits_ith(context, i), shape=shape).copy()
        for i in range(len(tokens))
    ]
    llama.llama_free(context)
    llama.llama_model_free(model)
    return np.array(rows)


def pooled(path: Path, tokens: Ints) -> Floats:
    """What the model makes of the whole prompt, by the pooling that the file names."""
    model = _loaded(path, llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = max(512, len(tokens))
    params.type_k = params.type_v = F32
    params.flash_attn_type, params.embeddings = 0, True
    context: Any = llama.llama_init_from_model(model, params)
    _decode(context, tokens, path)
    ranks = llama.llama_pooling_type(context) == llama.LLAMA_POOLING_TYPE_RANK
    size = (llama.llama_model_n_cls_out if ranks else llama.llama_model_n_embd)(model)
    vector = np.ctypeslib.as_array(llama.llama_get_embeddings_seq(context, 0), shape=(size,))
    found: Floats = vector.copy()
    llama.llama_free(context)
    llama.llama_model_free(model)
    return found


def _loaded(path: Path, params: Any) -> Any:
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(str(path).encode(), params)
    if not model:
        raise RuntimeError(f"llama.cpp cannot load {path}")
    return model


def _decode(context: Any, tokens: Ints, path: Path) -> None:
    """All tokens at once, each with logits."""
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens.tolist()):
        batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    status = llama.llama_decode(context, batch)
    llama.llama_batch_free(batch)
    if status:
        raise RuntimeError(f"llama.cpp cannot compute {path}: llama_decode returned {status}")


if __name__ == "__main__":
    main()
