"""What cannot be loaded is told with the file's name, whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguf_serve.engine.errors import ModelError, naming
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.kernels.opencl.platforms import list_devices


@pytest.mark.parametrize(
    ("name", "key", "value", "reason"),
    [
        ("llama-dense", "llama.vocab_size", -1, "needs llama.vocab_size, which is -1"),
        ("llama-dense", "tokenizer.ggml.model", "x", "unknown tokenizer.ggml.model 'x'"),
        ("llama-dense", "general.architecture", "x", "unknown architecture 'x'"),
        (
            "jamba-dense",
            "jamba.ssm.state_size",
            3,
            "inconsistent metadata or tensors .ValueError: a state of",
        ),
        ("llama4-moe", "llama4.attention.head_count", 10**9, "inconsistent metadata .* .ZeroDiv"),
    ],
)
def test_the_file_is_named(
    conformance_model: Callable[[str], Path], name: str, key: str, value: Any, reason: str
) -> None:
    if not list_devices():
        pytest.skip("no OpenCL device")
    path = conformance_model(name)
    options = EngineOptions(n_ctx=64, override_kv=((key, value),))
    with pytest.raises(ModelError, match=reason) as caught:
        load_model(path, options, lambda share: None)
    assert str(caught.value).startswith(f"{path}: ")


def test_a_file_is_named_once() -> None:
    with pytest.raises(ModelError, match=r"^b\.gguf: too short$"), naming(Path("b.gguf")):
        raise ModelError("b.gguf: too short")
