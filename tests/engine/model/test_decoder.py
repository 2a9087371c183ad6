"""Whole models against the logits of llama.cpp, and of exactly dequantized weights."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pyopencl as cl
import pytest
from conformance_data import reference
from msgspec.structs import replace
from stepping import Floats, Stepper, nmse, sequence

from gguf_serve.engine.scheduling.page_cache import PageCopy
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.quantization.quants import SUPPORTED_TYPES, by_name

FLOAT_NMSE = 1e-8  # llama.cpp's GELU is a table of halves: 8e-10; the others are at 4e-13
QUANTIZED_NMSE = 2e-8  # activations of 15 bits: 3e-9 to 1.1e-8
HALVES_NMSE = 4e-7  # of weights and activations as halves: 1.7e-7 to 3.4e-7
# Of activations of 8 bits no more than llama.cpp's, which the conformance data gives in one or two
# digits: 5e-5, 1.7e-4, 3.4e-4, and for the other types 1.4e-4 (blocks of 32) and 3.1e-4 (of 256).
BYTE_NMSE = {"Q1_0": 5.5e-5, "Q2_0": 1.75e-4, "TQ1_0": 3.45e-4, "TQ2_0": 3.45e-4}
OF_EACH_FORM = ("Q4_1", "Q8_0", "Q2_K", "Q4_K", "Q6_K", "IQ2_XS")  # of scales and codes
BYTE_NMSE_OF_BLOCKS = {32: 1.45e-4, 256: 3.15e-4}
MODELS = ["llama-dense", "qwen2-dense", "gemma3-dense"]
TYPES = [name for name in SUPPORTED_TYPES if name not in ("F32", "NVFP4")]  # no data for them
TABLE = [3, 7, 5, 9, 2, 11, 1, 0]

Load = Callable[..., Stepper]


@pytest.fixture(scope="session")
def load(device: Device, programs: Programs, conformance_model: Callable[[str], Path]) -> Load:
    """Loads a model of the conformance data once per device."""

    @cache
    def loaded(name: str, flash: bool = True) -> Stepper:
        return Stepper(conformance_model(name), device, programs, flash=flash)

    return loaded


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def data(name: str) -> tuple[list[int], Floats]:
    """The tokens and the logits after each of them."""
    return reference(name)


@pytest.mark.parametrize(
    "counts", [[64], [40] + [1] * 24, [7, 20, 37]], ids=["whole", "one by one", "uneven"]
)
def test_prompts_in_every_division(
    load: Load, name: str, data: tuple[list[int], Floats], counts: list[int]
) -> None:
    tokens, logits = data
    assert nmse(load(name).run(sequence(tokens, 1, TABLE), counts), logits) <= FLOAT_NMSE


@pytest.mark.parametrize("counts", [[64], [61, 1, 1, 1]], ids=["whole", "one by one"])
def test_attention_without_fusion(
    load: Load, name: str, data: tuple[list[int], Floats], counts: list[int]
) -> None:
    tokens, logits = data
    result = load(name, flash=False).run(sequence(tokens, 1, TABLE), counts)
    assert nmse(result, logits) <= FLOAT_NMSE


def test_company_changes_nothing(
    load: Load, device: Device, name: str, data: tuple[list[int], Floats]
) -> None:
    """Steps of prompts and of single tokens, mixed; on CPUs the bits are those of one alone."""
    model, (tokens, logits) = load(name), data
    rng = np.random.default_rng(1)
    alone = model.run(sequence(tokens, 1, TABLE), [64])
    me = sequence(tokens, 1, [4, 6])
    others = [
        sequence(rng.integers(model.n_vocab, size=90), slot, pages)
        for slot, pages in ((0, [3, 7, 5]), (2, [9, 2, 11]))
    ]
    model.step((others[0], 35))
    results = [
        model.step((others[0], 1), (me, 30), (others[1], 5))[1],
        model.step((others[0], 20), (me, 1), (others[1], 1))[1],
        *(model.step((me, 1), (others[1], 1), (others[0], 1))[0] for _ in range(3)),
        model.step((others[1], 40), (me, 30))[1],
    ]
    result = np.concatenate(results)
    assert nmse(result, logits) <= FLOAT_NMSE
    if device.is_simd:
        assert np.array_equal(result, alone)


def test_a_copied_page_serves_as_the_original(
    load: Load, name: str, data: tuple[list[int], Floats]
) -> None:
    """The first page is shared; of the second, four rows are taken over. The heir is in the same
    slot, since layers that keep their window only have it by slots, as states and not in pages."""
    model, (tokens, logits) = load(name), data
    model.run(sequence(tokens, 0, [12, 13]), [40])
    heir = sequence(tokens, 0, [12, 14])
    heir.n_computed = 36
    result = model.step((heir, 28), copies=[PageCopy(13, 14, 4)])[0]
    assert nmse(result, logits[36:]) <= FLOAT_NMSE


@pytest.mark.whole_models
@pytest.mark.parametrize(
    ("model", "types", "bound"),
    [
        ("llama-dense", ("f16", "bf16"), 3e-6),
        ("llama-dense", ("q8_0", "q4_0"), 3e-3),
        ("llama-dense", ("q4_1", "q5_1"), 3e-3),
        ("deepseek2-moe", ("q8_0", "q8_0"), 1e-4),
    ],
)
def test_types_of_the_cache(
    device: Device,
    programs: Programs,
    conformance_model: Callable[[str], Path],
    model: str,
    types: tuple[str, str],
    bound: float,
) -> None:
    """Their error shows, but it is small; a copied page serves as the original."""
    stepper = Stepper(conformance_model(model), device, programs, cache_types=types)
    tokens, logits = reference(model)
    result = stepper.run(sequence(tokens, 0, [12, 13]), [40, 1, 23])
    assert bound / 30 < nmse(result, logits) <= bound
    heir = sequence(tokens, 1, [12, 14])
    heir.n_computed = 36
    copied = stepper.step((heir, 28), copies=[PageCopy(13, 14, 4)])[0]
    assert nmse(copied, result[36:]) <= FLOAT_NMSE


def of_type(shared: Path, type_name: str) -> tuple[Path, list[int], Floats]:
    """The model whose matrices are of a type, tokens, and their exact logits."""
    path = shared / "conformance" / "quants" / f"{type_name}.gguf"
    if not path.is_file():
        pytest.skip(f"{path.name} is not among the conformance data")
    with np.load(path.with_suffix(".npz")) as arrays:
        return path, arrays["tokens"].tolist(), arrays["logits"]


@pytest.mark.whole_models(*OF_EACH_FORM)
@pytest.mark.parametrize("type_name", TYPES)
def test_tensor_types(device: Device, programs: Programs, shared: Path, type_name: str) -> None:
    path, tokens, logits = of_type(shared, type_name)
    n = len(tokens)
    result = Stepper(path, device, programs).run(sequence(tokens, 1, TABLE), [n - 9] + [1] * 9)
    bound = FLOAT_NMSE if type_name in ("F16", "BF16") else QUANTIZED_NMSE
    assert nmse(result, logits) <= bound


@pytest.mark.parametrize("type_name", ["Q4_K", "Q8_0"])
def test_tiles_of_halves(device: Device, shared: Path, type_name: str) -> None:
    """What GPUs with instructions for them compute of prompts, by hand."""
    if device.is_simd:
        pytest.skip("for GPUs only")
    path, tokens, logits = of_type(shared, type_name)
    able = replace(device, capabilities=replace(device.capabilities, forms=("MMA_BY_HAND",)))
    result = Stepper(path, able, Programs(able)).run(sequence(tokens, 1, TABLE), [len(tokens)])
    assert QUANTIZED_NMSE < nmse(result, logits) <= HALVES_NMSE


@pytest.mark.whole_models("Q8_0", "Q4_K")
@pytest.mark.parametrize(
    "type_name",
    [
        name if name in OF_EACH_FORM else pytest.param(name, marks=pytest.mark.slow)
        for name in SUPPORTED_TYPES
        if by_name(name).takes_bytes
    ],
)
def test_activations_of_8_bits(
    device: Device, programs: Programs, shared: Path, type_name: str
) -> None:
    """Their error is no larger than llama.cpp's, which rounds to 8 bits too; and company changes
    no bit."""
    if not device.is_simd:
        pytest.skip("for CPUs only")
    path, tokens, logits = of_type(shared, type_name)
    n = len(tokens)
    stepper = Stepper(path, replace(device, byte_codes="all"), programs)
    whole = stepper.run(sequence(tokens, 1, TABLE), [n])
    of_blocks = BYTE_NMSE_OF_BLOCKS.get(by_name(type_name).block_elements, 0.0)
    assert QUANTIZED_NMSE < nmse(whole, logits) <= BYTE_NMSE.get(type_name, of_blocks)
    assert np.array_equal(stepper.run(sequence(tokens, 1, TABLE), [n - 25, 20] + [1] * 5), whole)


def test_a_step_replays_without_setting_an_argument(
    load: Load, name: str, data: tuple[list[int], Floats], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, (tokens, _) = load(name), data
    seq = sequence(tokens, 1, TABLE)
    model.run(seq, [33, 1])  # records both kinds of step, if they are new
    seq.n_computed = 0

    def forbidden(*args: object) -> None:
        raise AssertionError("a kernel's argument was set")

    for method in ("set_arg", "set_args", "__call__"):
        monkeypatch.setattr(cl.Kernel, method, forbidden)
    model.run(seq, [20, 1, 40, 1])
