"""Which metadata keys an architecture reads, and what holds where a file does not have them.

llama.cpp, saving a model, writes every key that it knows, and many converters write some in vain: a
key that the architecture does not read is not looked at. Rows of the table of architectures are
unions of the sets that are here, such as ``window(4) | EXPERT_WEIGHTS``. Sizes that tensors show
(``feed_forward_length``, ``ssm.inner_size``) are read from those.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import inf
from types import EllipsisType
from typing import Any, Final, NamedTuple

from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.gguf.file import BARE_KEYS, GGUFFile


class Only(NamedTuple):
    """The one value of a key with which a model is computed here."""

    value: int | float | bool


class Always(NamedTuple):
    """What holds whatever a file says."""

    value: int | float | bool


REQUIRED: Final = ...  # a file without the key is refused
# None: a file may have the key
Value = int | float | bool | str | Only | Always | EllipsisType | None
Keys = Mapping[str, Value]


def may(*names: str) -> dict[str, Value]:
    """Keys that a file may have."""
    return dict.fromkeys(names)


def must(*names: str) -> dict[str, Value]:
    """Keys without which a file is refused."""
    return dict.fromkeys(names, REQUIRED)


def window(
    pattern: int | EllipsisType,
    size: int | EllipsisType | None = None,
    base: float | EllipsisType | None = None,
) -> dict[str, Value]:
    """A sliding window; ``pattern``: one of so many layers sees all keys, ``base``: RoPE's in the
    others. All are what holds where a file says nothing."""
    return {
        "attention.sliding_window": size,
        "attention.sliding_window_pattern": pattern,
        "rope.freq_base_swa": base,
    }


# Of every architecture
COMMON: Keys = must("block_count", "context_length", "embedding_length") | may(
    "attention.causal", "attention.head_count", "attention.head_count_kv", "attention.key_length",
    "attention.key_length_swa", "attention.value_length", "attention.value_length_swa",
    "classifier.output_labels", "classifier.pooling_type", "expert_count", "expert_group_count",
    "expert_group_used_count", "expert_used_count", "nextn_predict_layers", "pooling_type",
    "rope.dimension_count", "rope.dimension_count_swa", "rope.freq_base", "rope.scale_linear",
    "rope.scaling.attn_factor", "rope.scaling.factor", "rope.scaling.original_context_length",
    "rope.scaling.type", "rope.scaling.yarn_beta_fast", "rope.scaling.yarn_beta_slow",
)  # fmt: skip
EXPERT_SCALE = may("expert_weights_scale", "expert_weights_norm")
EXPERT_WEIGHTS = EXPERT_SCALE | may("expert_gating_func")
CLAMPS = may("swiglu_clamp_exp", "swiglu_clamp_shexp")
GRANITE_SCALES = must("logit_scale") | may("attention.scale", "embedding_scale", "residual_scale")
LATENT_SIZES = must("attention.kv_lora_rank") | may("attention.key_length_mla")
TEMPERATURE = may("attention.temperature_scale", "attention.temperature_length")
INDEXER_SIZES = must(
    "attention.indexer.head_count", "attention.indexer.key_length", "attention.indexer.top_k"
)
HYPER_NUMBERS = must("hyper_connection.count", "hyper_connection.epsilon")
NGRAM_NUMBERS = must(
    "ple.eos_token_id", "ple.head_offsets", "ple.head_vocab_sizes", "ple.heads_per_ngram",
    "ple.layer_multipliers", "ple.layers", "ple.ngram_size",
)  # fmt: skip


def as_read(gguf: GGUFFile, keys: Keys) -> GGUFFile:
    """The file as an architecture that reads these keys sees it: others are not there, and what
    holds without them is. ModelError names a key that is missing, or has a value that would
    need what is not computed here."""
    hyperparameters = (gguf.arch_key(""), BARE_KEYS)
    metadata: dict[str, Any] = {
        key: value for key, value in gguf.metadata.items() if not key.startswith(hyperparameters)
    }
    for name, without in {**COMMON, **keys}.items():
        key = gguf.arch_key(name)
        value = gguf.metadata.get(key)
        if isinstance(without, Always) or _is_unset(value):
            value = None
        if value is None:
            if without is REQUIRED:
                raise ModelError(f"{gguf.path}: {key} is missing")
            value = without.value if isinstance(without, Only | Always) else without
        elif isinstance(without, Only) and value != without.value:
            raise ModelError(f"{gguf.path}: {key} is {value}, expected {without.value}")
        if value is not None:
            metadata[key] = value
    return gguf.with_metadata(metadata)


def _is_unset(value: object) -> bool:
    """Whether this is what llama.cpp writes for what a model does not have."""
    if isinstance(value, float):
        return value == -inf
    return isinstance(value, int) and value in (-1, 0xFFFFFFFF)
