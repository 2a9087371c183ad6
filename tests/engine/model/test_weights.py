"""Tensors that do not fit the model are refused before anything is allocated."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf as oracle
import numpy as np
import pytest

from gguf_serve.engine.architecture.hyperparameters import read_hyperparameters
from gguf_serve.engine.architecture.table import find_architecture
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.model.placement import on_one_device
from gguf_serve.engine.model.weights import allocate_weights

N_EMBD, N_FF, N_VOCAB, HEAD = 8, 12, 10, 4
Check = Callable[..., None]


def shapes() -> dict[str, tuple[int, ...]]:
    """A layer of a llama; shapes in NumPy's order, rows first."""
    layer = {
        "attn_norm.weight": (N_EMBD,),
        "attn_q.weight": (2 * HEAD, N_EMBD),
        "attn_k.weight": (HEAD, N_EMBD),
        "attn_v.weight": (HEAD, N_EMBD),
        "attn_output.weight": (N_EMBD, 2 * HEAD),
        "ffn_norm.weight": (N_EMBD,),
        "ffn_gate.weight": (N_FF, N_EMBD),
        "ffn_up.weight": (N_FF, N_EMBD),
        "ffn_down.weight": (N_EMBD, N_FF),
    }
    ends = {"token_embd.weight": (N_VOCAB, N_EMBD), "output_norm.weight": (N_EMBD,)}
    return {f"blk.0.{name}": shape for name, shape in layer.items()} | ends


@pytest.fixture
def check(tmp_path: Path) -> Check:
    """Reads a file with these tensors up to the first allocation, which has no device."""

    def run(tensors: dict[str, tuple[int, ...]], **keys: int) -> None:
        path = tmp_path / "model.gguf"
        writer = oracle.GGUFWriter(path, "llama")
        given = {"block_count": 1, "embedding_length": N_EMBD, "context_length": 32}
        given |= {"feed_forward_length": N_FF, "attention.head_count": 2}
        for key, value in (given | {"attention.head_count_kv": 1} | keys).items():
            writer.add_uint32(f"llama.{key}", value)
        writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
        for name, shape in tensors.items():
            writer.add_tensor(name, np.ones(shape, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        with open_gguf(path) as gguf:
            hparams = read_hyperparameters(gguf, find_architecture("llama"))
            device: Any = None
            allocate_weights(gguf, hparams, [device], on_one_device(1))

    return run


def test_a_whole_model_gets_as_far_as_the_device(check: Check) -> None:
    with pytest.raises(AttributeError):
        check(shapes() | {"output.weight": (N_VOCAB, N_EMBD), "blk.0.attn_q.bias": (2 * HEAD,)})


@pytest.mark.parametrize("name", shapes())
def test_a_tensor_that_is_missing(check: Check, name: str) -> None:
    tensors = shapes()
    del tensors[name]
    with pytest.raises(ModelError, match=name):
        check(tensors)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("output.weight", (N_VOCAB + 16, N_EMBD)),  # would write beyond the logits
        ("output.weight", (2, N_VOCAB, N_EMBD)),
        ("output.bias", (N_VOCAB - 1,)),
        ("rope_freqs.weight", (HEAD // 2 - 1,)),
        ("blk.0.attn_norm.weight", (N_EMBD - 1,)),
        ("blk.0.attn_q.bias", (HEAD,)),
        ("blk.0.attn_k.bias", (HEAD, 1)),
        ("blk.0.attn_q_norm.weight", (HEAD // 2,)),
        ("blk.0.post_attention_norm.weight", (1,)),
        ("blk.0.ffn_up.bias", (N_FF + 1,)),
        ("blk.0.ffn_down.weight", (N_EMBD, N_FF + 1)),
    ],
)
def test_a_tensor_of_another_shape(check: Check, name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelError, match=name):
        check(shapes() | {name: shape})


@pytest.mark.parametrize("n_layers", [0, 2**32 - 2])
def test_an_absurd_number_of_layers(check: Check, n_layers: int) -> None:
    with pytest.raises(ModelError, match=f"block_count is {n_layers}"):
        check(shapes(), block_count=n_layers)
