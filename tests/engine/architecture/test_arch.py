"""Names of what files have numbers for."""

from __future__ import annotations

import pytest

from gguf_serve.engine.architecture.arch import pooling_of
from gguf_serve.engine.errors import ModelError


def test_pooling_types():
    assert [pooling_of(i, "") for i in range(5)] == ["none", "mean", "cls", "last", "rank"]
    with pytest.raises(ModelError, match=r"x\.gguf: unknown pooling_type 5"):
        pooling_of(5, "x.gguf")
