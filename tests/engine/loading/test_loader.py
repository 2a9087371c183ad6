"""What cannot be loaded is told with the file's name, whatever is wrong with it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from gguf_serve.engine.errors import ModelError, naming
from gguf_serve.engine.loading.loader import compile_model, load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.kernels.opencl.compiling import features
from gguf_serve.kernels.opencl.platforms import DeviceInfo, list_devices


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


@pytest.mark.parametrize("load", [load_model, compile_model])
def test_a_gpu_s_instructions_that_do_not_build(
    shared: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
    tmp_path: Path, load: Callable[..., object],
) -> None:  # fmt: skip
    """Though the probe did: the model is loaded without. Which are AMD's, here, on a CPU with the
    kernels for GPUs."""
    index = next((str(info.index) for info in list_devices() if "Intel" in info.platform), None)
    if index is None:
        pytest.skip("no device that children compile for")
    answers = ["SHORTS_SDOT2"]

    def first(info: DeviceInfo, kind: str, forms: list[str]) -> str:
        return answers.pop() if kind == "shorts" else ""

    monkeypatch.setattr(features, "_gpu_flags", lambda info: frozenset({"gfx"}))
    monkeypatch.setattr(features, "_first", first)
    monkeypatch.setattr(features, "_answers", {})
    monkeypatch.setattr(features, "features_path", lambda: tmp_path / "features.json")
    options = EngineOptions(n_ctx=64, device=index, kernel_family="simt", fit=False)
    load(shared / "conformance" / "quants" / "Q4_K.gguf", options, lambda share: None)
    (told,) = [text for text in caplog.messages if "kernels that do without" in text]
    assert told.startswith("kernels that do without SHORTS_SDOT2 are used: matrix/matvec_simt.cl")
    assert answers == []
