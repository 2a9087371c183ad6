"""Matrix products against NumPy in double precision, on activations that codes hold exactly."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import gguf
import launching
import numpy as np
import numpy.typing as npt
import pytest
from launching import (
    CODE_MAX,
    SPAN_SUM_MAX,
    exact_activations,
    exact_spans,
    quantized,
    run,
    unquantized,
)
from msgspec.structs import replace
from random_blocks import columns, random_matrix

from gguf_serve.kernels.matrix.matmul import glu, matmul
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs
from gguf_serve.kernels.opencl.tape import OUTPUTS
from gguf_serve.kernels.opencl.tensor import Tensor, empty, read, upload
from gguf_serve.kernels.quantization.activations import Activations, activations
from gguf_serve.kernels.quantization.quants import SUPPORTED_TYPES, by_name
from gguf_serve.kernels.quantization.weights import (
    Matrix,
    pack,
    raw_matrix,
)

Doubles = npt.NDArray[np.float64]
ROUNDING = 8 * 2.0**-24  # of float sums, relative to the sum of magnitudes
PASSES = [(32, 33), (8, 9), (8, 3), (1, 1)]  # tile, tokens
FEW = [(8, 2), (8, 5), (8, 8)]  # the same: tiles of pairs of tokens, and with one left over


@dataclass(frozen=True)
class Setting:
    """A device and what is multiplied on it: values x [n, k] by w [m, k]."""

    device: Device
    programs: Programs

    def inputs(self, w: Matrix, x: npt.NDArray[np.float32]) -> Activations:
        if w.is_float:
            return Activations(w.n_cols, values=upload(self.device, x))
        return quantized(self.device, self.programs, x)

    def product(
        self,
        w: Matrix,
        x: Activations,
        n: int,
        tile: int,
        out: npt.NDArray[np.float32],
        **options: object,
    ) -> npt.NDArray[np.float32]:
        """``out`` after matmul of n tokens into it."""
        return launching.product(self.device, self.programs, w, x, n, tile, out, **options)

    def gated(
        self,
        w: Matrix,
        x: Activations,
        n: int,
        tile: int,
        out: Activations,
        activation: str,
        bias: Tensor | None = None,
    ) -> None:
        counts = upload(self.device, np.full(4, n, np.int32))
        run(
            self.device, self.programs, n,
            lambda tape: glu(
                tape, w, x, out, counts, activation=activation, tile=tile, bias=bias
            ),
        )  # fmt: skip


@pytest.fixture
def setting(device: Device, programs: Programs) -> Setting:
    return Setting(device, programs)


def assert_close(result: npt.NDArray[np.float32], expected: Doubles, bound: Doubles) -> None:
    __tracebackhide__ = True
    error = np.abs(result - expected)
    assert np.all(error <= bound), f"{(error / bound).max():.2f} times the bound"


def values_of(type_name: str, n: int, n_cols: int, rng: np.random.Generator) -> npt.NDArray:
    if by_name(type_name).is_float:
        return rng.standard_normal((n, n_cols), dtype=np.float32)
    return exact_activations(n, n_cols, rng)


def check_product_in_a_place(setting: Setting, type_name: str, *, biased: bool) -> None:
    """Products of all PASSES, added to columns of what is there."""
    rng = np.random.default_rng(1)
    n_rows, offset, width = 50, 7, 60
    raw, numbers = random_matrix(type_name, n_rows, columns(type_name), rng)
    w = pack(setting.device, setting.programs, [raw])
    x = values_of(type_name, 33, w.n_cols, rng)
    bias = rng.standard_normal(n_rows, dtype=np.float32) * biased
    before = rng.standard_normal((35, width), dtype=np.float32)
    inside = slice(offset, offset + n_rows)
    expected, magnitude = x @ numbers.T + bias, np.abs(x) @ np.abs(numbers).T + np.abs(bias)
    expected += before[:33, inside]
    magnitude += np.abs(before[:33, inside])
    for tile, n in PASSES:
        on_device = upload(setting.device, bias) if biased else None
        options = {"add": True, "bias": on_device, "out_offset": offset}
        result = setting.product(w, setting.inputs(w, x), n, tile, before, **options)
        assert_close(result[:n, inside], expected[:n], ROUNDING * magnitude[:n])
        result[:n, inside] = before[:n, inside]
        assert np.array_equal(result, before)


# Most tests of products add them, as the layers of models do: so they have programs in common.
@pytest.mark.parametrize("type_name", [*SUPPORTED_TYPES, "F16_INT13", "BF16_INT13"])
def test_product_added_into_a_place_of_the_row(setting: Setting, type_name: str) -> None:
    """The remainder of the memory is left alone, and company does not change a CPU's bits."""
    check_product_in_a_place(setting, type_name, biased=False)


@pytest.mark.parametrize("type_name", ["F16", "Q8_0", "Q2_K"])
def test_product_with_bias_added(setting: Setting, type_name: str) -> None:
    """What adds the bias has the sums, and does not know of the type."""
    check_product_in_a_place(setting, type_name, biased=True)


@pytest.mark.parametrize("type_name", [*SUPPORTED_TYPES, "F16_INT13", "BF16_INT13"])
def test_a_token_s_numbers_do_not_depend_on_its_company(setting: Setting, type_name: str):
    if not setting.device.is_simd:
        pytest.skip("promised for CPUs only")
    rng = np.random.default_rng(2)
    raw, _ = random_matrix(type_name, 50, columns(type_name), rng)
    w = pack(setting.device, setting.programs, [raw])
    x = values_of(type_name, 33, w.n_cols, rng)
    out = np.ones((33, 50), np.float32)
    whole = setting.product(w, setting.inputs(w, x), 33, 32, out, add=True)
    for tile, n in [*PASSES[1:], *FEW]:
        for order in (range(n), range(32, 32 - n, -1)):
            inputs = setting.inputs(w, x[list(order)])
            result = setting.product(w, inputs, n, tile, out, add=True)
            assert np.array_equal(result[:n], whole[list(order)])


@pytest.mark.parametrize("tile", [1, 8, 32])
@pytest.mark.parametrize("type_name", ["F16_INT13", "BF16_INT13"])
def test_the_largest_sums_of_halves_as_integers(
    setting: Setting, type_name: str, tile: int
) -> None:
    """32 codes that are as large as they can be together, or one that is so alone."""
    weights = np.full((16, 96), 255 / 256, np.float32)
    weights[:, 32:64], weights[:, 64:] = -weights[:, 32:64], 0
    weights[:, 64] = weights[:, 0]
    halves = weights.astype(np.float16).view(np.uint8)
    if type_name == "BF16_INT13":
        halves = (weights.view(np.uint32) >> 16).astype(np.uint16).view(np.uint8)
    raw = raw_matrix(halves.reshape(-1), type_name, 16, 96)
    w = pack(setting.device, setting.programs, [raw])
    for signs in (1, -1):
        x = signs * np.sign(weights[:tile]).repeat(-(-tile // 16), 0)[:tile] * np.float32(16383)
        result = setting.product(
            w, setting.inputs(w, x), tile, tile, np.zeros((tile, 16), np.float32)
        )
        np.testing.assert_allclose(result, x.astype(np.float64) @ weights.T, rtol=3e-7)


@pytest.mark.parametrize("type_name", ["Q4_K", "Q5_K", "Q6_K", "Q2_K"])
@pytest.mark.parametrize("n_rows", [50, 80])
def test_activations_whose_blocks_share_scales(
    setting: Setting, type_name: str, n_rows: int
) -> None:
    """Also for many tokens, of which some make no whole tile, and an odd number of groups."""
    device, rng = setting.device, np.random.default_rng(8)
    raw, numbers = random_matrix(type_name, n_rows, 512, rng)
    w = pack(device, setting.programs, [raw])
    x = exact_spans(141, 512, rng)
    expected, magnitude = x @ numbers.T, np.abs(x) @ np.abs(numbers).T
    whole = None
    for tile, n in [(32, 141), *PASSES, *FEW]:
        inputs = quantized(device, setting.programs, x[:n], spans=True)
        result = setting.product(w, inputs, n, tile, np.zeros((n, n_rows), np.float32))
        assert_close(result, expected[:n], ROUNDING * magnitude[:n])
        whole = result if whole is None else whole
        if device.is_simd:
            assert np.array_equal(result, whole[:n])


@pytest.mark.parametrize("tile", [1, 8, 32])
@pytest.mark.parametrize("type_name", ["Q4_K", "Q5_K", "Q6_K"])
def test_the_largest_sums_of_blocks_that_share_scales(
    setting: Setting, type_name: str, tile: int
) -> None:
    """The largest codes and scales of weights, with activations that are all alike."""
    block = np.full(by_name(type_name).block_bytes, 0xFF, np.uint8)
    one = np.array([1], np.float16).view(np.uint8)
    if type_name == "Q6_K":
        block[:192], block[192:208], block[208:] = 0, 0x80, one
    else:  # minima of 0
        block[:2], block[2:4] = one, 0
    w = pack(setting.device, setting.programs, [raw_matrix(np.tile(block, 16), type_name, 16, 256)])
    numbers = gguf.quants.dequantize(block, gguf.GGMLQuantizationType[type_name])
    x = np.full((tile, 256), SPAN_SUM_MAX / 64 / 1024, np.float32)
    x[1::2] *= -1  # every other token
    out = np.zeros((tile, 16), np.float32)
    inputs = quantized(setting.device, setting.programs, x, spans=True)
    result = setting.product(w, inputs, tile, tile, out)
    expected = np.repeat(x @ numbers.astype(np.float64)[:, None], 16, axis=1)
    assert_close(result, expected, 128 * 2.0**-24 * np.abs(expected))


@pytest.mark.parametrize("tile", [1, 8, 32])
@pytest.mark.parametrize("type_name", ["F16", "Q5_1"])
def test_many_rows_and_several_matrices(setting: Setting, type_name: str, tile: int) -> None:
    rng = np.random.default_rng(3)
    parts = [random_matrix(type_name, n, columns(type_name), rng) for n in (160, 32, 523)]
    w = pack(setting.device, setting.programs, [raw for raw, _ in parts])
    numbers = np.concatenate([numbers for _, numbers in parts])
    n = 1 if tile == 1 else tile + 1
    x = values_of(type_name, n, w.n_cols, rng)
    out = np.full((n, 715), np.nan, np.float32)
    result = setting.product(w, setting.inputs(w, x), n, tile, out)
    assert_close(result, x @ numbers.T, ROUNDING * np.abs(x) @ np.abs(numbers).T)


@pytest.mark.parametrize("tile", [1, 8, 32])
@pytest.mark.parametrize("type_name", ["Q4_1", "Q6_K", "Q2_K", "NVFP4"])
def test_quantized_weights_take_float_activations_too(
    setting: Setting, type_name: str, tile: int
) -> None:
    rng = np.random.default_rng(4)
    raw, numbers = random_matrix(type_name, 50, columns(type_name), rng)
    w = pack(setting.device, setting.programs, [raw])
    n = min(tile, 9)
    x = rng.standard_normal((n, w.n_cols), dtype=np.float32)
    inputs = Activations(w.n_cols, values=upload(setting.device, x))
    result = setting.product(w, inputs, n, tile, np.zeros((n, 50), np.float32))
    assert_close(result, x @ numbers.T, ROUNDING * np.abs(x) @ np.abs(numbers).T)


@pytest.mark.parametrize("tile", [1, 8, 32])
@pytest.mark.parametrize("type_name", ["Q6_K", "Q5_K", "Q8_0", "Q2_K", "IQ4_XS"])
def test_the_largest_sums(setting: Setting, type_name: str, tile: int) -> None:
    """All codes and all scales of weights and activations at their ends, of one sign."""
    block = np.full(by_name(type_name).block_bytes, 0xFF, np.uint8)
    one = np.array([1], np.float16).view(np.uint8)
    if type_name == "Q6_K":  # codes of -32, scales of -128
        block[:192], block[192:208], block[208:] = 0, 0x80, one
    elif type_name == "Q5_K":  # codes of 31, scales of 63, minima of 0
        block[:2], block[2:4] = one, 0
    elif type_name == "Q2_K":  # codes of 3, scales and minima of 15
        block[80:82] = block[82:84] = one
    elif type_name == "IQ4_XS":  # codes of -127, scales of -32: sums of 240 * x below zero
        block[:2], block[2:] = one, 0
    else:
        block = np.concatenate([one, np.full(32, 0x80, np.uint8)] * 8)  # codes of -128
    w = pack(setting.device, setting.programs, [raw_matrix(np.tile(block, 16), type_name, 16, 256)])
    numbers = gguf.quants.dequantize(block, gguf.GGMLQuantizationType[type_name])
    x = np.full((tile, 256), CODE_MAX / 1024, np.float32)
    x[1::2] *= -1  # every other token
    out = np.zeros((tile, 16), np.float32)
    result = setting.product(w, setting.inputs(w, x), tile, tile, out, add=True)
    expected = np.repeat(x @ numbers.astype(np.float64)[:, None], 16, axis=1)
    # Equal terms may round the same way in each of 256 additions.
    assert_close(result, expected, 128 * 2.0**-24 * np.abs(expected))


@pytest.mark.parametrize("tile", [8, 32])
def test_the_rows_of_another_count(setting: Setting, tile: int) -> None:
    """Logits: 3 outputs in a step of 5 tokens."""
    rng = np.random.default_rng(5)
    raw, numbers = random_matrix("F16", 50, 77, rng)
    w = pack(setting.device, setting.programs, [raw])
    x = values_of("F16", 5, 77, rng)
    out = upload(setting.device, np.zeros((5, 50), np.float32))
    counts = (5, 3, 0, 0)
    on_device = upload(setting.device, np.array(counts, np.int32))
    inputs = setting.inputs(w, x)
    run(
        setting.device, setting.programs, counts,
        lambda tape: matmul(tape, w, inputs, out, on_device, tile=tile, count=OUTPUTS),
    )  # fmt: skip
    result = read(out, None, setting.device.queue)
    assert_close(result[:3], (x @ numbers.T)[:3], ROUNDING * (np.abs(x) @ np.abs(numbers).T)[:3])
    assert not result[3:].any()


# Gated linear units


def silu(x: Doubles) -> Doubles:
    return x / (1 + np.exp(-x))


def gelu(x: Doubles) -> Doubles:
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


FORMULAS: dict[str, Callable[[Doubles], Doubles]] = {"silu": silu, "gelu": gelu}


@dataclass(frozen=True)
class Gated:
    """Paired matrices with biases, their input, and what comes of it with its error bound."""

    w: Matrix
    bias: Tensor | None
    x: npt.NDArray[np.float32]
    expected: Doubles
    bound: Doubles


def gated_case(setting: Setting, type_name: str, width: int, activation: str, biased: bool):
    rng = np.random.default_rng(6)
    pair = [random_matrix(type_name, width, columns(type_name), rng) for _ in range(2)]
    w = pack(setting.device, setting.programs, [raw for raw, _ in pair], paired=True)
    x = values_of(type_name, 33, w.n_cols, rng)
    biases = rng.standard_normal((2, width)).astype(np.float32) * biased
    gate, up = (x @ numbers.T + b for (_, numbers), b in zip(pair, biases, strict=True))
    off_gate, off_up = (
        ROUNDING * (np.abs(x) @ np.abs(numbers).T + np.abs(b))
        for (_, numbers), b in zip(pair, biases, strict=True)
    )
    active = FORMULAS[activation](gate)
    # The steepest slope of both functions is 1.13; their own rounding is of the gate's size.
    bound = (1.13 * off_gate + ROUNDING * np.abs(gate)) * np.abs(up) + np.abs(active) * off_up
    packed = upload(setting.device, interleaved(biases)) if biased else None
    return Gated(w, packed, x, active * up, bound)


def interleaved(biases: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """The order of packed rows: 16 of gate, 16 of up, padded to 64."""
    padded = np.zeros((2, -(-biases.shape[1] // 32) * 32), np.float32)
    padded[:, : biases.shape[1]] = biases
    return padded.reshape(2, -1, 16).transpose(1, 0, 2).reshape(-1)


GLU_CASES = [
    ("F16", 50, "gelu", True),
    ("Q4_1", 71, "silu", True),
    ("Q6_K", 96, "gelu", False),
    ("Q2_K", 50, "silu", True),
]


@pytest.mark.parametrize(("tile", "n"), [(32, 33), (8, 9), (1, 1)])
@pytest.mark.parametrize(("type_name", "width", "activation", "biased"), GLU_CASES)
def test_glu(
    setting: Setting, type_name: str, width: int, activation: str, biased: bool, tile: int, n: int
) -> None:
    case = gated_case(setting, type_name, width, activation, biased)
    room = upload(setting.device, np.full((34, width), 7, np.float32))
    inputs = setting.inputs(case.w, case.x)
    setting.gated(case.w, inputs, n, tile, Activations(width, room), activation, case.bias)
    result = read(room, None, setting.device.queue)
    assert_close(result[:n], case.expected[:n], case.bound[:n])
    assert np.all(result[n:] == 7)


@pytest.mark.parametrize(("tile", "n"), [(8, 9), (1, 1)])
@pytest.mark.parametrize("biased", [False, True])
def test_glu_with_a_quantized_result(setting: Setting, tile: int, n: int, biased: bool) -> None:
    case = gated_case(setting, "Q4_1", 96, "silu", biased)
    made = activations(setting.device, 33, 96, quantized=True)
    room = replace(made, values=empty(setting.device, (33, 96)))
    inputs = setting.inputs(case.w, case.x)
    setting.gated(case.w, inputs, n, tile, room, "silu", case.bias)
    floats = read(room.values, n, setting.device.queue)
    assert_close(floats, case.expected[:n], case.bound[:n])
    codes = unquantized(setting.device, setting.programs, room, n)
    steps = np.abs(floats).reshape(n, 3, 32).max(2, keepdims=True) / CODE_MAX
    half = 0.5 + CODE_MAX * 4 * 2.0**-24  # a value in steps has a float's rounding
    assert np.all(np.abs(codes - floats).reshape(n, 3, 32) <= steps * half)
    if setting.device.is_simd:  # without room for the floats: the same codes
        alone = activations(setting.device, 33, 96, quantized=True)
        setting.gated(case.w, inputs, n, tile, alone, "silu", case.bias)
        again = unquantized(setting.device, setting.programs, alone, n)
        assert np.array_equal(again, codes)


@pytest.mark.parametrize("activation", FORMULAS)
def test_activation_functions(setting: Setting, activation: str) -> None:
    """One column and one token: the gates are the weights themselves, and up is 1."""
    gates = np.linspace(-12, 12, 641, dtype=np.float32)
    pair = [raw_matrix(a.view(np.uint8), "F32", 641, 1) for a in (gates, np.ones_like(gates))]
    w = pack(setting.device, setting.programs, pair, paired=True)
    room = Activations(641, empty(setting.device, (1, 641)))
    x = setting.inputs(w, np.ones((1, 1), np.float32))
    setting.gated(w, x, 1, 1, room, activation)
    result = read(room.values, None, setting.device.queue)[0]
    expected = FORMULAS[activation](gates.astype(np.float64))
    assert_close(result, expected, ROUNDING * np.abs(gates) + 2.0**-149)


def test_glu_without_room_for_floats_where_they_are_needed(setting: Setting) -> None:
    if setting.device.is_simd:
        pytest.skip("a CPU needs none")
    case = gated_case(setting, "Q4_1", 96, "silu", False)
    room = activations(setting.device, 1, 96, quantized=True)
    with pytest.raises(ValueError, match="float values"):
        setting.gated(case.w, setting.inputs(case.w, case.x), 1, 1, room, "silu")


# What is refused


def test_shapes_and_forms_that_do_not_fit(setting: Setting) -> None:
    rng = np.random.default_rng(7)
    device, programs = setting.device, setting.programs
    raw = {name: random_matrix(name, 32, 64, rng)[0] for name in ("F32", "Q8_0")}
    whole = pack(device, programs, [raw["F32"]])
    paired = pack(device, programs, [raw["Q8_0"]] * 2, paired=True)
    floats = Activations(64, values=empty(device, (1, 64)))
    narrow = Activations(32, values=empty(device, (1, 32)))
    codes = activations(device, 1, 64, quantized=True)
    out = np.zeros((1, 32), np.float32)
    with pytest.raises(ValueError, match="32 columns for a matrix of 64"):
        setting.product(whole, narrow, 1, 1, out)
    with pytest.raises(ValueError, match="F32 weights need float activations"):
        setting.product(whole, codes, 1, 1, out)
    with pytest.raises(ValueError, match="paired"):
        setting.product(paired, floats, 1, 1, out)
    with pytest.raises(ValueError, match="64 rows into 64 columns"):
        setting.gated(paired, floats, 1, 1, floats, "silu")
    with pytest.raises(ValueError, match="32 rows into 32 columns"):
        setting.gated(whole, floats, 1, 1, narrow, "silu")
    with pytest.raises(ValueError, match="'tanh'"):
        setting.gated(paired, floats, 1, 1, narrow, "tanh")
