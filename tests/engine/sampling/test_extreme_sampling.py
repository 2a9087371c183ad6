"""Sampling with values at the ends of their ranges: numbers stay finite, a token is drawn."""

from __future__ import annotations

from typing import Any

import numpy as np
from drawing import answer, make
from hypothesis import given
from hypothesis import strategies as st

from gguf_serve.engine.option import Real
from gguf_serve.engine.sampling_params import DEFAULT_SAMPLERS, PARAMETERS, RANGES, SamplingParams


def test_a_temperature_that_is_0_in_float32_is_greedy() -> None:
    row = np.array([1.0, 3.0, 2.0] + [0.0] * 29, np.float32)
    for temperature in (5e-324, 1e-300, 1e-39):
        sampler = make(SamplingParams(temperature=temperature))
        assert sampler.needs().k == 1
        assert sampler.sample(answer(sampler.needs(), row)).token == 1


def test_biases_that_add_up_to_infinity() -> None:
    row = np.zeros(32, np.float32)
    for bias, chosen in ((1e308, True), (-1e308, False)):
        sampler = make(SamplingParams(logit_bias=((3, bias), (3, bias))))
        assert (sampler.sample(answer(sampler.needs(), row)).token == 3) == chosen


def ends(low: float, high: float) -> list[float]:
    values = {low, high, 0.5, 1.0, 1e-300}
    return sorted(value for value in values if low <= value <= high)


EXTREME = {
    name: st.sampled_from(ends(low, high))
    for name, (low, high) in RANGES.items()
    if isinstance(PARAMETERS[name].type, Real)
}
SAMPLERS = (*DEFAULT_SAMPLERS, "adaptive_p")


@given(changes=st.fixed_dictionaries({}, optional=EXTREME), mirostat=st.sampled_from([0, 0, 1, 2]))
def test_any_parameters_draw_a_token(changes: dict[str, float], mirostat: Any) -> None:
    params = SamplingParams(
        **changes, mirostat=mirostat, dry_sequence_breakers=(), logit_bias=((3, 1e9), (4, -1e9)),
        samplers=SAMPLERS,
    )  # fmt: skip
    sampler = make(params, prompt=(1, 2, 3, 1, 2, 3))
    row = np.linspace(-30.0, 30.0, 32, dtype=np.float32)
    for _ in range(3):
        sampled = sampler.sample(answer(sampler.needs(), row), n_probs=3)
        assert 0.0 <= sampled.prob <= 1.0
        sampler.accept(sampled.token)
