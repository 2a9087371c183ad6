"""Numbers of layers, and arrays with a value for each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest

from engine.errors import ModelError
from engine.gguf import open_gguf
from engine.models.arch import Hyperparameters
from engine.models.hyperparameters import read_hyperparameters
from engine.models.table import find_architecture

Change = Callable[..., Hyperparameters]


@pytest.fixture
def change(conformance_model: Callable[[str], Path]) -> Change:
    """Reads mimo2's model of two layers with other metadata."""

    def run(**keys: object) -> Hyperparameters:
        with open_gguf(conformance_model("mimo2-moe")) as gguf:
            named = {f"mimo2.{key.replace('__', '.')}": value for key, value in keys.items()}
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
