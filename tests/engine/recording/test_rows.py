"""Activations are made for the matrices that read them: their types say which form they want."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stepping import Stepper

from gguf_serve.engine.recording.rows import Emission, Rows
from gguf_serve.kernels.matrix import matmul
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import Tape
from gguf_serve.kernels.quantization.activations import Activations
from gguf_serve.kernels.quantization.weights import Matrix

# With experts, latent heads, indexers, state spaces, groups of heads, and streams beside layers.
MODELS = [
    "llama-moe", "glm-dsa-moe", "jamba-dense", "kimi-k3-moe", "deepseek4-moe", "grovemoe-moe",
    "qwen4exp-moe",
]  # fmt: skip


@pytest.mark.parametrize("model", MODELS)
def test_every_matrix_that_reads_is_among_the_readers(
    device: Device,
    programs: Programs,
    conformance_model: Callable[[str], Path],
    model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not device.is_simd:
        pytest.skip("the same for every device")
    made: dict[int, tuple[Activations, list[Matrix]]] = {}
    operand, inputs = Emission.operand, matmul._inputs
    n_checked = 0

    def giving(self: Emission, rows: Rows) -> Activations:
        found = operand(self, rows)
        made[id(found)] = found, [linear.matrix for _, linear in self.launch.operands]
        return found

    def reading(device: Device, w: Matrix, x: Activations) -> Any:
        nonlocal n_checked
        if id(x) in made:
            assert any(w is reader for reader in made[id(x)][1]), f"{w.n_rows} x {w.n_cols}"
            n_checked += 1
        return inputs(device, w, x)

    monkeypatch.setattr(Emission, "operand", giving)
    monkeypatch.setattr(matmul, "_inputs", reading)
    monkeypatch.setattr(Tape, "add", lambda *args, **kwargs: None)  # builds nothing
    Stepper(conformance_model(model), device, programs).runner.warm_up()
    assert n_checked
