"""Models on a device that allocates less at once than their matrices take."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from conformance_data import reference
from msgspec.structs import replace
from stepping import Stepper, nmse, sequence

from gguf_serve.kernels.attention import kv
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.platforms import DeviceError
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.quantization import weights

FLOAT_NMSE = 1e-7
LIMIT = 600 << 10  # bytes; the largest matrices have six to ten times as many


def check_logits(model: Stepper, name: str, pages: list[int]) -> None:
    """Those of the reference, for a prompt and single tokens in these pages."""
    tokens, logits = reference(name)
    result = model.run(sequence(tokens, 1, pages), [40] + [1] * 24)
    assert nmse(result, logits) <= FLOAT_NMSE


@pytest.mark.whole_models
@pytest.mark.parametrize("name", ["llama-dense", "gpt-oss-moe"])
def test_matrices_are_split(
    conformance_model: Callable[[str], Path],
    device: Device,
    programs: Programs,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """gpt-oss has biases of experts, which are split too."""
    monkeypatch.setattr(weights, "SLAB_ROWS", 32)
    small = replace(device, max_allocation=LIMIT)
    check_logits(Stepper(conformance_model(name), small, programs), name, [3, 7, 5])


def test_what_cannot_be_split_is_named(
    conformance_model: Callable[[str], Path], device: Device, programs: Programs
) -> None:
    with pytest.raises(DeviceError, match="at most 0 MiB can be allocated at once"):
        Stepper(conformance_model("llama-dense"), replace(device, max_allocation=5000), programs)


@pytest.mark.whole_models
@pytest.mark.parametrize("name", ["llama-dense", "deepseek32-moe"])
def test_the_cache_of_a_layer_lies_in_slabs(
    conformance_model: Callable[[str], Path],
    device: Device,
    programs: Programs,
    monkeypatch: pytest.MonkeyPatch,
    name: str,
) -> None:
    """Of eight pages each; deepseek32 has one of an indexer's keys too."""
    monkeypatch.setattr(kv, "_slab_pages", lambda device, n_pages, page_bytes, most: 8)
    model = Stepper(conformance_model(name), device, programs)
    assert all(len(layer.k.slabs) == 4 for layer in model.runner.pages[0].layers)
    check_logits(model, name, [3, 17, 29])
