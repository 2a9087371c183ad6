"""Which metadata counts: every key of each row, and no other.

``data/llama_keys.json`` lists for each architecture the keys that llama.cpp (of llama-cpp-python
0.3.36) reads for it, beside those that it reads for all; ``data/saved_keys.json`` what it writes
for a llama that has none of it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from math import inf
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import pytest
from conformance_data import names, read_spec, second_names

from gguf_serve.engine.architecture.arch import Architecture, Hyperparameters
from gguf_serve.engine.architecture.hyperparameters import read_hyperparameters
from gguf_serve.engine.architecture.keys import COMMON, REQUIRED, Always, Only
from gguf_serve.engine.architecture.table import ARCHITECTURES
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import GGUFFile, open_gguf

LLAMA_KEYS: dict[str, str] = json.loads(
    (Path(__file__).parents[1] / "data" / "llama_keys.json").read_text()
)
SAVED: dict[str, Any] = json.loads(
    (Path(__file__).parents[1] / "data" / "saved_keys.json").read_text()
)
# Sizes and places that tensors show, so that none of these is read.
SHOWN = [
    "adapters.lora_rank", "attention.decay_lora_rank", "attention.gate_lora_rank",
    "attention.iclr_lora_rank", "attention.output_group_count", "attention.output_lora_rank",
    "attention.q_lora_rank",
    "attention.value_length_mla", "attention.value_residual_mix_lora_rank", "dense_2_feat_in",
    "dense_2_feat_out", "dense_3_feat_in", "dense_3_feat_out", "embedding_length_per_layer_input",
    "expert_chunk_feed_forward_length", "expert_feed_forward_length", "expert_latent_length",
    "expert_shared_count", "expert_shared_feed_forward_length", "feed_forward_length",
    "full_attention_interval", "hash_layer_count", "hyper_connection.low_rank",
    "interleave_moe_layer_step", "kda.head_dim", "leading_dense_block_count", "moe_every_n_layers",
    "moe_latent_size", "ple.conv_kernel", "shortconv.l_cache", "ssm.conv_kernel", "ssm.group_count",
    "ssm.inner_size", "ssm.time_step_rank", "time_decay_extra_dim", "time_mix_extra_dim",
    "vocab_size",
]  # fmt: skip
# What llama.cpp reads and then does not use.
IDLE = {
    "grok": "attention.temperature_length rope.scaling.yarn_attn_factor router_logit_softcapping",
    "bailingmoe3": "kda.safe_gate",
    "nanbeige": "skip_loop_final_norm",  # without loops
    "phi3": "attention.sliding_window",
    "granite": "deepstack_mapping",  # of images
    "granite_swa": "deepstack_mapping",
    "qwen4exp": "ple.image_token_id",
    "arwkv7": "attention.layer_norm_epsilon",
    "rwkv6": "attention.layer_norm_rms_epsilon",
    "rwkv6qwen2": "attention.layer_norm_epsilon rescale_every_n_layers",
    "rwkv7": "attention.layer_norm_rms_epsilon",
    "minicpm3": "attention.kv_lora_rank",  # attn_kv_b shows it
}
# Read by the layers that have them, from the file itself.
BY_LAYERS = [
    "attn_res.block_size", "hyper_connection.count", "hyper_connection.epsilon",
    "hyper_connection.magnitude", "hyper_connection.sinkhorn_iterations", "ple.layers",
    "residual_scale",
]  # fmt: skip
# What counts only beside another key; None: without it.
BESIDE: dict[str, dict[str, Any]] = {
    "attention.temperature_length": {"attention.temperature_scale": 0.5},
    "attention.layer_norm_epsilon": {"attention.layer_norm_rms_epsilon": None},
    "leading_dense_block_count": {"attention.sliding_window_pattern": 1},
}
DEEPER = {"exaone4": "attention.sliding_window attention.sliding_window_pattern"}  # 64 layers
MODELS = {read_spec(name)["arch"]: name for name in [*reversed(second_names()), *names()]}


@pytest.mark.parametrize("arch", sorted(set(ARCHITECTURES) & set(LLAMA_KEYS)))
def test_all_keys_that_llama_cpp_reads_are_known(arch: str) -> None:
    known = {*COMMON, *ARCHITECTURES[arch].keys, ARCHITECTURES[arch].epsilon_key, *SHOWN}
    unread = set(LLAMA_KEYS[arch].split()) - known - set(IDLE.get(arch, "").split())
    assert not unread


@pytest.mark.parametrize("arch", sorted(MODELS))
def test_every_key_counts(arch: str, conformance_model: Callable[[str], Path]) -> None:
    """With another value or without it the model is another one, or is refused by its name."""
    row = ARCHITECTURES.get(arch) or pytest.skip(f"no row for {arch} yet")
    elsewhere = {*BY_LAYERS, *DEEPER.get(arch, "").split()}
    with open_gguf(conformance_model(MODELS[arch])) as gguf:
        whole = dict(gguf.metadata)
        idle = []
        for name, default in row.keys.items():
            if name in elsewhere or isinstance(default, Always):
                continue
            own = whole.get(gguf.arch_key(name), default)
            beside = {gguf.arch_key(k): v for k, v in BESIDE.get(name, {}).items()}
            if not any(
                _counts(
                    name,
                    _outcome(gguf, row, metadata),
                    _outcome(gguf, row, metadata | {gguf.arch_key(name): other}),
                )
                for metadata in (whole, whole | beside)
                for other in _others(own)
            ):
                idle.append(name)
        assert not idle


def _outcome(gguf: GGUFFile, row: Architecture, metadata: dict[str, Any]) -> Hyperparameters | str:
    """What is read with these metadata, or why they are refused; None: the key is not there."""
    there = {key: value for key, value in metadata.items() if value is not None}
    gguf.metadata = MappingProxyType(there)
    try:
        return read_hyperparameters(gguf, row)
    except ModelError as error:
        return str(error)


def _counts(name: str, before: Hyperparameters | str, after: Hyperparameters | str) -> bool:
    if isinstance(after, str):
        return name.rpartition(".")[2] in after
    return after != before


def _others(value: object) -> Iterator[object]:
    """Nothing, and values of a key of this one's type, or of any where there is none."""
    value = value.value if isinstance(value, Only) else value
    yield None
    if isinstance(value, np.ndarray):
        yield from (value[:1], 1 - value, value * 2 + 1)
    elif isinstance(value, bool):
        yield not value
    elif isinstance(value, int | float):
        yield from (1, value + 1, value * 2 + 2)
    else:
        yield from (True, False, 3, 2, 0.5, "silu", "x")
        yield from (np.array(flags) for flags in ([1, 0], [0, 1], [8, 8, 8, 8]))


def test_what_is_not_read_does_not_count(conformance_model: Callable[[str], Path]) -> None:
    """As llama.cpp saves it: what a llama does not have, and what it has as unset."""
    with open_gguf(conformance_model("llama-dense")) as gguf:
        row = ARCHITECTURES["llama"]
        before = read_hyperparameters(gguf, row)
        saved: dict[str, object] = {
            "kda.gate_lower_bound": -inf, "logit_scale": 0.0, "pooling_type": 4294967295,
            "classifier.pooling_type": -1, "expert_weights_norm": True, "swiglu_clamp_exp": 7.0,
            "attention.sliding_window": 3, "attention.clamp_kqv": 1.0,
            "attention.max_alibi_bias": 8.0, "residual_scale": 0.5, "ssm.state_size": 0,
        }  # fmt: skip
        named = {gguf.arch_key(key): value for key, value in saved.items()}
        gguf.metadata = MappingProxyType({**gguf.metadata, **named})
        assert read_hyperparameters(gguf, row) == before


@pytest.mark.parametrize("arch", sorted(MODELS))
def test_what_llama_cpp_saves_in_vain(arch: str, conformance_model: Callable[[str], Path]) -> None:
    row = ARCHITECTURES.get(arch) or pytest.skip(f"no row for {arch} yet")
    with open_gguf(conformance_model(MODELS[arch])) as gguf:
        before = read_hyperparameters(gguf, row)
        vain = {gguf.arch_key(k): v for k, v in SAVED.items() if k not in row.all_keys}
        gguf.metadata = MappingProxyType(vain | gguf.metadata)
        assert read_hyperparameters(gguf, row) == before


@pytest.mark.parametrize("arch", sorted(MODELS))
def test_required_keys_are_named(arch: str, conformance_model: Callable[[str], Path]) -> None:
    row = ARCHITECTURES.get(arch) or pytest.skip(f"no row for {arch} yet")
    with open_gguf(conformance_model(MODELS[arch])) as gguf:
        whole = dict(gguf.metadata)
        for key in (k for k, v in {**COMMON, **row.keys}.items() if v is REQUIRED):
            full = gguf.arch_key(key)
            gguf.metadata = MappingProxyType({k: v for k, v in whole.items() if k != full})
            with pytest.raises(ModelError, match=f"{full} is missing"):
                read_hyperparameters(gguf, row)
