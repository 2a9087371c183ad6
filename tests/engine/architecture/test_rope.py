"""RoPE frequencies and M-RoPE sections against formulas of their own, in double precision."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import stepping
from conformance_data import reference
from msgspec.structs import replace
from stepping import Floats, Stepper, nmse, sequence

from gguf_serve.engine.architecture.hyperparameters import read_hyperparameters, with_rope
from gguf_serve.engine.architecture.rope import RopeScaling, pair_components, rescaled
from gguf_serve.engine.options import RopeOptions
from gguf_serve.engine.request import Grid
from gguf_serve.kernels.opencl.device import Device
from gguf_serve.kernels.opencl.program import Programs

N_ROT, BASE = 64, 10000.0


def yarn(factor: float, context: int, fast: float, slow: float, share: float) -> list[float]:
    """Frequencies by the paper (https://arxiv.org/abs/2309.00071, definition 2), pair by pair;
    the ramp runs over whole pairs, as everywhere in practice."""

    def pair(turns: float) -> float:
        return N_ROT / 2 * math.log(context / (2 * math.pi * turns)) / math.log(BASE)

    low, high = math.floor(pair(fast)), math.ceil(pair(slow))
    result = []
    for i in range(N_ROT // 2):
        plain = BASE ** (-2 * i / N_ROT)
        kept = 1 - min(1.0, max(0.0, (i - low) / (high - low)))
        kept *= share
        result.append(plain * kept + plain / factor * (1 - kept))
    return result


@pytest.mark.parametrize(
    ("options", "expected", "magnitude"),
    [
        (RopeOptions("linear", factor=4), [BASE ** (-i / 32) / 4 for i in range(32)], 1.0),
        (RopeOptions("none", factor=4), [BASE ** (-i / 32) for i in range(32)], 1.0),
        (RopeOptions("yarn", factor=4), yarn(4, 2048, 32, 1, 1), 0.1 * math.log(4) + 1),
        (
            RopeOptions("yarn", factor=8, original_context=512, beta_fast=16, beta_slow=2,
                        extrapolation=0.5, attention_factor=1.5),
            yarn(8, 512, 16, 2, 0.5), 1.5 * (0.1 * math.log(8) + 1),
        ),
        (RopeOptions("yarn", factor=4, extrapolation=0), [BASE ** (-i / 32) / 4 for i in range(32)],
         1.0),
        (RopeOptions("linear", factor=2, attention_factor=0.5),
         [BASE ** (-i / 32) / 2 for i in range(32)], 0.5),
    ],
)  # fmt: skip
def test_what_options_make_of_a_model_without_scaling(
    options: RopeOptions, expected: list[float], magnitude: float
) -> None:
    scaling = rescaled(RopeScaling(original_context=2048), options)
    found = scaling.frequencies(BASE, N_ROT, None)
    assert np.abs(found / np.array(expected) - 1).max() < 2e-7
    assert scaling.magnitude == pytest.approx(magnitude)


def test_options_leave_what_they_do_not_name() -> None:
    own = RopeScaling(4.0, 1.0, 4096, beta_fast=24, attention_factor=1.25)
    assert rescaled(own, RopeOptions()) == own
    assert rescaled(own, RopeOptions(factor=2)) == replace(own, factor=2)
    assert rescaled(own, RopeOptions("linear")) == replace(own, extrapolation=0)
    assert rescaled(own, RopeOptions("none")) == replace(own, extrapolation=0, factor=1)


def test_factors_divide_frequencies() -> None:
    factors = np.linspace(1, 8, 32, dtype=np.float32)
    plain = RopeScaling().frequencies(BASE, N_ROT, None)
    assert RopeScaling().frequencies(BASE, N_ROT, factors) == pytest.approx(plain / factors)


def test_sections_one_after_the_other() -> None:
    assert pair_components((2, 1, 1, 0), 6, interleaved=False).tolist() == [0, 0, 1, 2, 0, 0]
    assert pair_components((1, 0, 2, 1), 4, interleaved=False).tolist() == [0, 2, 2, 3]


def test_sections_in_turns() -> None:
    """As Qwen3-VL's 24, 20, 20 in small: rows and columns end before time does."""
    found = pair_components((4, 2, 2, 0), 8, interleaved=True)
    assert found.tolist() == [0, 1, 2, 0, 1, 2, 0, 3]


Load = Callable[[str], Stepper]


@pytest.mark.whole_models
@pytest.mark.parametrize("name", ["qwen2vl-dense", "qwen3vl-dense"])
def test_images_in_a_prompt(
    device: Device, programs: Programs, conformance_model: Callable[[str], Path], name: str
) -> None:
    """However a prompt with an image is divided, its logits are the same; and other than those
    of the same tokens as text, from the image on."""
    model = Stepper(conformance_model(name), device, programs)
    tokens = np.random.default_rng(1).integers(model.n_vocab, size=64)
    grids = (Grid(10, rows=4, columns=5),)

    def run(counts: list[int], grids: tuple[Grid, ...]) -> Floats:
        seq = sequence(tokens, 1, [3, 7])
        seq.request = replace(seq.request, grids=grids)
        return model.run(seq, counts)

    whole, text = run([64], grids), run([64], ())
    assert nmse(run([13, 20, 28, 1, 1, 1], grids), whole) < 1e-9
    assert nmse(whole[:10], text[:10]) < 1e-9
    assert nmse(whole[11:], text[11:]) > 1e-4
    assert nmse(run([64], (Grid(10, rows=1, columns=1),)), text) < 1e-9


LOG4, LOG8 = 0.1 * math.log(4), 0.1 * math.log(8)


@pytest.mark.parametrize(
    ("own", "options", "magnitude", "scores"),
    [
        # DeepSeek-V2 of one multiplier, whose cos and sin stay, and others of two.
        (RopeScaling(8, 1, 64, log_multiplier=0.707, one_multiplier=True), RopeOptions(),
         1.0, (1 + 0.707 * LOG8) ** 2),
        (RopeScaling(8, 1, 64, log_multiplier=0.707), RopeOptions(),
         (1 + LOG8) / (1 + 0.707 * LOG8), (1 + LOG8) ** 2),
        (RopeScaling(8, 1, 64), RopeOptions(), 1 + LOG8, (1 + LOG8) ** 2),
        # What a person sets.
        (RopeScaling(), RopeOptions("linear", factor=4), 1.0, (1 + LOG4) ** 2),
        (RopeScaling(), RopeOptions("linear", factor=4, attention_factor=0.7), 0.7,
         (0.7 * (1 + LOG4)) ** 2),
        (RopeScaling(), RopeOptions("yarn", factor=4), 1 + LOG4, (1 + LOG4) ** 2),
        (RopeScaling(8, 1, 64, log_multiplier=0.707), RopeOptions("linear", factor=4), 1.0,
         ((1 + LOG4) * (1 + 0.707 * LOG4)) ** 2),
        (RopeScaling(8, 1, 64, log_multiplier=0.707), RopeOptions("none"), 1.0, 1.0),
    ],
)  # fmt: skip
def test_scores_of_latent_attention_are_scaled(
    own: RopeScaling, options: RopeOptions, magnitude: float, scores: float
) -> None:
    """By llama.cpp's formulas, which its logits follow to 1e-12 in all these cases."""
    scaling = rescaled(replace(own, scores=True), options)
    assert scaling.magnitude == pytest.approx(magnitude)
    assert scaling.score_scale == pytest.approx(scores)
    assert replace(scaling, scores=False).score_scale == 1.0


@pytest.mark.whole_models
@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("yarn", [0.13966, 0.61893, 0.96086, 0.00982, -1.26017, 2.02995, 0.10107, -1.54546]),
        ("linear", [-0.15447, 0.59152, 0.71608, 0.30569, -0.84665, 1.73494, 0.32101, -1.34854]),
    ],
)
def test_deepseek2_with_a_scaling_that_a_person_sets(
    device: Device,
    programs: Programs,
    conformance_model: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    expected: list[float],
) -> None:
    """The first of the last logits of llama.cpp, with factor 4 from 64 tokens on."""
    options = RopeOptions(kind, factor=4, original_context=64)
    monkeypatch.setattr(
        stepping, "read_hyperparameters",
        lambda gguf, arch: with_rope(read_hyperparameters(gguf, arch), options),
    )  # fmt: skip
    tokens, _ = reference("deepseek2-moe")
    model = Stepper(conformance_model("deepseek2-moe"), device, programs)
    result = model.run(sequence(tokens, 1, [3, 7]), [len(tokens)])
    assert np.abs(result[-1, :8] - expected).max() < 1e-4
