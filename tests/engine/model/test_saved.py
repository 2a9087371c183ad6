"""Models that llama.cpp has loaded and saved give the logits that they gave before.

It writes every key that it knows, those without meaning as 0, -1 or -inf. Run in an environment
that has llama-cpp-python, too; ``tests/engine/architecture/test_keys.py`` has without it what it
writes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conformance_data import names, reference
from stepping import Stepper, nmse, sequence

from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

pytestmark = pytest.mark.slow
TABLE = [3, 7, 5, 9, 2, 11, 1, 0]


@pytest.fixture(scope="module")
def save() -> Callable[[Path, Path], None]:
    """Loads a model with llama.cpp, and saves it."""
    llama: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python saves the models")
    llama.llama_backend_init()

    def run(source: Path, target: Path) -> None:
        model = llama.llama_model_load_from_file(bytes(source), llama.llama_model_default_params())
        llama.llama_model_save_to_file(model, bytes(target))
        llama.llama_model_free(model)

    return run


@pytest.mark.parametrize("name", names())
def test_saved_models(
    name: str, tmp_path: Path, device: Device, programs: Programs,
    conformance_model: Callable[[str], Path], save: Callable[[Path, Path], None],
) -> None:  # fmt: skip
    save(conformance_model(name), tmp_path / "saved.gguf")
    tokens, logits = reference(name)
    saved = Stepper(tmp_path / "saved.gguf", device, programs)
    assert nmse(saved.run(sequence(tokens, 1, TABLE), [59, 1, 1, 1, 1, 1]), logits) <= 1e-7
