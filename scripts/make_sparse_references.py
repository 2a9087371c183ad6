"""Writes tests/engine/data/sparse.npz: llama.cpp's logits of small models with sparse attention.

    other-venv/bin/python scripts/make_sparse_references.py

Runs in an interpreter with llama-cpp-python and gguf, beside ../shared/conformance, whose models
get the settings of sparse.json, so that their indexers choose from few tokens on. KV caches are
f32. Flash attention is on where the model is minimax-m3: without it llama.cpp attends to all keys.
"""

from __future__ import annotations

import importlib
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

import llama_cpp as llama
import numpy as np
import numpy.typing as npt

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT / "tests" / "engine" / "data"
CONFORMANCE = ROOT.parent / "shared" / "conformance"
N_TOKENS, N_LAST = 120, 24
F32 = 0  # of ggml's types


def main() -> None:
    sys.path.insert(0, str(CONFORMANCE))
    make_model = importlib.import_module("make_model")
    with np.load(CONFORMANCE / "logits" / "glm5-next-moe.npz") as arrays:
        tokens = arrays["tokens"]
    more = np.random.default_rng(5).integers(128, size=N_TOKENS - len(tokens))
    tokens = np.concatenate([tokens, more]).astype(np.int32)
    llama.llama_backend_init()
    found = {"tokens": tokens}
    for name, case in json.loads((DATA / "sparse.json").read_text(encoding="utf-8")).items():
        path = CONFORMANCE / "specs" / f"{case['spec']}.json"
        spec = json.loads(path.read_text(encoding="utf-8"))
        spec["kv"] |= {f"{spec['arch']}.{key}": value for key, value in case["kv"].items()}
        with tempfile.TemporaryDirectory() as folder:
            model = make_model.build(name, Path(folder) / f"{name}.gguf", spec)
            rows = logits(str(model), tokens.tolist(), flash=spec["arch"] == "minimax-m3")
        found[name] = rows[-N_LAST:]
    np.savez_compressed(DATA / "sparse.npz", **found)


def logits(path: str, tokens: list[int], *, flash: bool) -> npt.NDArray[np.float32]:
    """The logits after each token: float32 [tokens, vocabulary]."""
    model = llama.llama_model_load_from_file(path.encode(), llama.llama_model_default_params())
    params = llama.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 512
    params.type_k = params.type_v = F32
    params.flash_attn_type = int(flash)
    context: Any = llama.llama_init_from_model(model, params)
    if not context:
        raise RuntimeError(f"llama.cpp cannot load {path}")
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    batch.n_tokens = len(tokens)
    for i, token in enumerate(tokens):
        batch.token[i], batch.pos[i], batch.logits[i] = token, i, 1
        batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
    if llama.llama_decode(context, batch):
        raise RuntimeError(f"llama.cpp cannot compute {path}")
    shape = (llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model)),)
    rows = [
        np.ctypeslib.as_array(llama.llama_get_logits_ith(context, i), shape=shape).copy()
        for i in range(len(tokens))
    ]
    llama.llama_batch_free(batch)
    llama.llama_free(context)
    llama.llama_model_free(model)
    return np.array(rows)


if __name__ == "__main__":
    main()
