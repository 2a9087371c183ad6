"""Several tokens of a sequence in one step against as many steps, the same bits: with long
contexts and in company. test_conformance.py has short ones, of every kind of model."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from msgspec.structs import replace
from stepping import SIZES, Floats, Stepper, sequence

from gguf_serve.kernels.attention.kv import PAGE
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

LONG = ["gemma3-dense", "gpt-oss-moe"]  # windows in rings, sinks
ROUNDS = [3, 1, 8, 2, 5]  # tokens of a step: all at once, or one by one

Load = Callable[..., Stepper]


@pytest.fixture(scope="module")
def load(device: Device, programs: Programs, conformance_model: Callable[[str], Path]) -> Load:
    """Loads a model once per device, with room for ``n_ctx`` tokens in a slot."""
    if not device.is_simd:
        pytest.skip("promised for CPUs only")

    @cache
    def loaded(name: str, n_ctx: int = SIZES.n_ctx_slot, types: str = "f32 f32") -> Stepper:
        sizes = replace(SIZES, n_ctx_slot=n_ctx, n_pages=3 * n_ctx // PAGE)
        k, v = types.split()
        return Stepper(
            conformance_model(name), device, programs, sizes=sizes, cache_types=(k, v)
        )  # fmt: skip

    return loaded


def together_and_apart(model: Stepper, prompt: list[int], rounds: list[int]) -> list[Floats]:
    """The logits after a prompt, of steps of so many tokens and of steps of one."""
    rng = np.random.default_rng(7)
    n = sum(prompt) + sum(rounds)
    tokens, table = rng.integers(model.n_vocab, size=n), list(range(-(-n // PAGE), 0, -1))
    return [
        model.run(sequence(tokens, 1, table), [*prompt, *counts])[sum(prompt) :]
        for counts in (rounds, [1] * sum(rounds))
    ]


def test_with_keys_in_parts(load: Load) -> None:
    """Across the end of the first part of 256 keys, of windows in rings and of quantized ones."""
    together, apart = together_and_apart(load(LONG[0], 288, "q8_0 q4_1"), [96, 96, 60], [3, 8])
    assert np.array_equal(together, apart)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_with_many_keys(load: Load, name: str) -> None:
    """Across the end of the second part."""
    together, apart = together_and_apart(load(name, 640), [96] * 5 + [30], ROUNDS)
    assert np.array_equal(together, apart)


def test_in_company(load: Load) -> None:
    """Of two sequences, now one with drafts, now the other."""
    model = load(LONG[0])
    tokens = np.random.default_rng(8).integers(model.n_vocab, size=80)
    me, other, alone = (sequence(tokens, i, [2 * i + 4, 2 * i + 5]) for i in range(3))
    counts = [(40, 33), (3, 1), (1, 6)]
    found = [model.step((me, mine), (other, its))[0] for mine, its in counts]
    apart = model.run(alone, [40, 1, 1, 1, 1])
    assert np.array_equal(np.concatenate(found), apart)
