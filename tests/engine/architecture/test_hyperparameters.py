"""Numbers of layers, and arrays with a value for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from gguf_serve.engine.architecture.arch import Hyperparameters
from gguf_serve.engine.architecture.hyperparameters import read_hyperparameters, with_rope
from gguf_serve.engine.architecture.table import find_architecture
from gguf_serve.engine.errors import EngineError, ModelError
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.model.decoder import kv_shapes
from gguf_serve.engine.options import RopeOptions

Change = Callable[..., Hyperparameters]


@pytest.fixture
def change(conformance_model: Callable[[str], Path]) -> Change:
    """Reads a model of two layers with other metadata."""

    def run(model: str = "mimo2-moe", **keys: object) -> Hyperparameters:
        with open_gguf(conformance_model(model)) as gguf:
            named = {gguf.arch_key(key.replace("__", ".")): value for key, value in keys.items()}
            gguf.metadata = MappingProxyType({**gguf.metadata, **named})
            return read_hyperparameters(gguf, find_architecture(gguf.architecture))

    return run


def test_layers_that_predict_ahead_are_not_among_the_others(change: Change) -> None:
    """Of a real GLM-4.5 the last one is such a layer, with tensors and values like the others."""
    whole, fewer = change(), change(nextn_predict_layers=1)
    assert (whole.n_layers, fewer.n_layers) == (2, 1)
    for name in ("n_heads", "n_kv", "windowed", "rope"):
        assert getattr(fewer, name) == getattr(whole, name)[:1], name


def test_numbers_of_layers_that_cannot_be(change: Change) -> None:
    with pytest.raises(ModelError, match="nextn_predict_layers is 2 of 2 layers"):
        change(nextn_predict_layers=2)
    with pytest.raises(ModelError, match="head_count_kv has 3 values for 2 layers"):
        change(attention__head_count_kv=np.array([1, 1, 1]))


def test_experts_that_cannot_be(change: Change) -> None:
    with pytest.raises(ModelError, match="9 of 8 experts in layer 0, not 1 to all"):
        change("llama-moe", expert_used_count=9)
    assert change("llama-moe", expert_used_count=np.array([2, 1])).experts.used == (2, 1)


def test_layers_that_share_k_and_v(change: Change) -> None:
    """With the last one before them that has a window, or has none, as they do."""
    h = change("gemma4-e2b")
    assert h.kv_layers == (0, 1, 2, 3, 4, 3, 3, 3, 3, 4)
    assert (h.head_sizes(3), h.head_sizes(4)) == ((64, 64, 64), (128, 128, 128))
    assert [shape.n_kv for shape in kv_shapes(h)] == [2] * 5 + [0] * 5
    with pytest.raises(ModelError, match=r"shared_kv_layers is 10, expected 0 to 9"):
        change("gemma4-e2b", attention__shared_kv_layers=10)
    with pytest.raises(ModelError, match=r"shared_kv_layers is 6, but no layer of the same kind"):
        change("gemma4-e2b", attention__shared_kv_layers=6)


def test_other_heads_in_windows_need_a_scale(change: Change) -> None:
    with pytest.raises(ModelError, match=r"attention\.key_length_swa is 128, not 64 as elsewhere"):
        change("gpt-oss-moe", attention__key_length_swa=128)


def test_attention_without_heads(change: Change) -> None:
    """As in drafts that llama.cpp saves: it leaves the key out."""
    with pytest.raises(ModelError, match=r"head_count is 0 or missing, though there is attention"):
        change("llama-dense", attention__head_count=0)


def test_sizes_of_heads_that_are_not_there(change: Change) -> None:
    """llama.cpp saves 0 for a model without attention."""
    h = change("mamba2-dense", attention__key_length=0, attention__value_length=0)
    assert not any(h.n_heads)


NAN_ROPE = "angles would be no numbers"


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"rope__freq_base": 0.0}, NAN_ROPE),
        ({"rope__freq_base": -10000.0}, NAN_ROPE),
        ({"rope__freq_base": 1e-300}, NAN_ROPE),
        ({"rope__freq_base_swa": 0.0}, r"rope\.freq_base_swa is 0\.0"),
        ({"rope__freq_base": float("inf")}, "not a finite number"),
        ({"rope__scaling__factor": -4.0}, NAN_ROPE),
        ({"rope__scaling__factor": 1e-320}, NAN_ROPE),
        ({"rope__scaling__attn_factor": 1e39}, NAN_ROPE),
        ({"rope__scaling__type": "yarn", "rope__freq_base": 1.0}, NAN_ROPE),
        ({"rope__scaling__type": "yarn", "rope__scaling__yarn_beta_fast": 0.0}, NAN_ROPE),
        ({"attention__layer_norm_rms_epsilon": -1e-5}, "epsilon is -1e-05, not 0 or more"),
        ({"attention__layer_norm_rms_epsilon": float("nan")}, "epsilon is nan, not a finite"),
        ({"attention__layer_norm_rms_epsilon": 1e300}, "epsilon is 1e\\+300, not"),
        (
            {"model": "command-r-dense", "logit_scale": 1e39},
            "logit_scale gives the factor 1e\\+39, not a finite float32",
        ),
        (
            {"model": "granite-dense", "attention__scale": -1e300},
            "attention.scale gives the factor",
        ),
        (
            {"model": "grok-moe", "attn_logit_softcapping": -1.0},
            "softcapping is -1.0, not 0 or more",
        ),
        (
            {"model": "deepseek4-moe", "swiglu_clamp_exp": np.array([1.0] * 3 + [np.nan])},
            "swiglu_clamp_exp has nan",
        ),
    ],
)
def test_numbers_that_make_every_logit_nan(
    change: Change, keys: dict[str, object], message: str
) -> None:
    with pytest.raises(ModelError, match=message):
        change(**keys)


@pytest.mark.parametrize(
    "options",
    [
        RopeOptions(base=1e-300),
        RopeOptions(base=-1.0),
        RopeOptions(base=float("inf")),
        RopeOptions("linear", factor=-1.0),
        RopeOptions("linear", factor=1e-320),
        RopeOptions("yarn", base=1.0),
        RopeOptions("yarn", factor=4.0, beta_fast=0.0),
        RopeOptions(attention_factor=1e300),
    ],
)
def test_options_that_make_every_logit_nan(change: Change, options: RopeOptions) -> None:
    with pytest.raises(EngineError, match="the options for RoPE give angles that are no numbers"):
        with_rope(change(), options)
