"""Models that llama.cpp has loaded and saved give the logits that they gave before.

It writes every key that it knows, those without meaning as 0, -1 or -inf, and of some models not
all tensors or keys: those files are refused by what is missing. Run in an environment that has
llama-cpp-python, too; ``tests/engine/architecture/test_keys.py`` has without it what it writes.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conformance_data import names, read_spec, reference, second_names
from stepping import Stepper, distance, nmse, sequence

from gguf_serve.engine.errors import ModelError
from gguf_serve.kernels.opencl.device import Device, open_device
from gguf_serve.kernels.opencl.program import Programs

pytestmark = pytest.mark.slow
TABLE = [3, 7, 5, 9, 2, 11, 1, 0]
GELU_NMSE = 1e-7  # llama.cpp has a table of halves
# Of ../shared/conformance/second: architectures that llama.cpp refuses to save,
REFUSED = {"apertus", "bitnet", "gemma3n", "step35", "step35-mtp", "t5", "t5-gated"}
CRASHES = {"eagle3"}  # when it is loaded without its target,
# which it reads otherwise from what it saves: the multiplier times ten, no matrices after pooling,
OTHERS = {"deepseek2-lite", "gemma-embedding-dense"}
APART = ["chameleon-swin"]  # of which llama.cpp computes something else than the model,
# and of which it does not write all that it needs itself: what the error names.
LACKING = {
    "bert": "token_embd.weight", "bert-rank": "token_embd.weight", "dflash": "target_layers",
    "dflash2": "target_layers", "dream": "mask_token_id", "dspark": "target_layers",
    "dspark-deepseek4": "output_hc_fn.weight", "dspark-gemma4": "target_layers",
    "eagle3-own": "target_layers",
    "eurobert": "token_embd.weight", "gemma4-assistant": "head_count",
    "gemma4-assistant-e2b": "head_count", "gemma4-e2b": "per_layer_model_proj.weight",
    "gemma4-e4b": "per_layer_model_proj.weight", "graniteswitch": "adapters.count",
    "jina-bert-v2": "token_embd.weight", "jina-bert-v2-code": "token_embd.weight",
    "jina-bert-v2-rank": "token_embd.weight", "jina-bert-v3": "token_embd.weight",
    "llada": "mask_token_id", "llada-moe": "mask_token_id", "modern-bert": "token_embd.weight",
    "modern-bert-rank": "token_embd.weight", "modern-bert-swiglu": "token_embd.weight",
    "nemotron_h_moe-puzzle": "0 of 8 experts", "neo-bert": "token_embd.weight",
    "neo-bert-cls": "token_embd.weight", "nomic-bert": "token_embd.weight",
    "nomic-bert-moe": "token_embd.weight", "rnd1": "mask_token_id",
    "wavtokenizer-dec": "features_length",
}  # fmt: skip
UNLIKE = REFUSED | CRASHES | OTHERS | {*APART} | LACKING.keys()
FIRST = sorted({*names()} - {*second_names()} - UNLIKE)
COMPLETE = sorted({*second_names()} - UNLIKE)

Build = Callable[[str], Path]
Save = Callable[[str], Path]


@pytest.fixture
def save(conformance_model: Build, tmp_path: Path) -> Save:
    """Loads a model with llama.cpp, and saves it."""
    llama: Any = pytest.importorskip("llama_cpp", reason="llama-cpp-python saves the models")
    llama.llama_backend_init()

    def run(name: str) -> Path:
        source, target = conformance_model(name), tmp_path / "saved.gguf"
        model = llama.llama_model_load_from_file(bytes(source), llama.llama_model_default_params())
        llama.llama_model_save_to_file(model, bytes(target))
        llama.llama_model_free(model)
        return target

    return run


@pytest.mark.parametrize("name", FIRST)
def test_saved_models(name: str, device: Device, programs: Programs, save: Save) -> None:
    tokens, logits = reference(name)
    saved = Stepper(save(name), device, programs)
    assert nmse(saved.run(sequence(tokens, 1, TABLE), [59, 1, 1, 1, 1, 1]), logits) <= GELU_NMSE


@pytest.mark.parametrize("name", COMPLETE)
def test_the_second_set(name: str, device: Device, programs: Programs, save: Save) -> None:
    assert distance(name, save(name), device, programs) <= GELU_NMSE


@pytest.mark.parametrize("name", APART)
def test_the_same_bits(
    name: str, device: Device, programs: Programs, conformance_model: Build, save: Save
) -> None:
    tokens = reference(name)[0]
    saved, original = (
        Stepper(path, device, programs).run(sequence(tokens, 1, TABLE), [64])
        for path in (save(name), conformance_model(name))
    )
    assert np.array_equal(saved, original)


@pytest.mark.parametrize("name", LACKING)
def test_what_is_missing_is_named(name: str, conformance_model: Build, save: Save) -> None:
    device = open_device()
    saved, target = save(name), read_spec(name).get("target")
    target = conformance_model(target) if target else None
    with pytest.raises(ModelError, match=LACKING[name]):
        Stepper(saved, device, Programs(device), target=target)
