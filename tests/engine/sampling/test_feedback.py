"""Samplers that learn from what was drawn: Mirostat and adaptive-p."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from drawing import answer, make
from numpy.typing import NDArray

from gguf_serve.engine.sampling.sampler import Candidates
from gguf_serve.engine.sampling_params import SamplingParams

OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}


def test_mirostat_follows_its_feedback() -> None:
    tau, eta, mu = 3.0, 0.4, 6.0
    params = SamplingParams(temperature=0.7, mirostat=2, mirostat_tau=tau, mirostat_eta=eta, seed=8)
    sampler = make(params, n_vocab=200)
    rng = np.random.default_rng(1)
    for _ in range(40):
        row = rng.normal(0, 3, 200).astype(np.float32)
        sampled = sampler.sample(answer(sampler.needs(), row), n_probs=200)
        p = np.exp(row.astype(np.float64) / 0.7)
        p /= p.sum()
        kept = np.flatnonzero(-np.log2(p) <= mu) if (-np.log2(p)).min() <= mu else [p.argmax()]
        assert {token for token, _ in sampled.top} == set(np.array(kept).tolist())
        mu -= eta * (-math.log2(p[sampled.token] / p[kept].sum()) - tau)


def test_mirostat_1_reaches_its_surprise() -> None:
    params = SamplingParams(temperature=1.0, mirostat=1, mirostat_tau=3.0, seed=8)
    sampler = make(params, n_vocab=500)
    row = (-1.1 * np.log(np.arange(1, 501))).astype(np.float32)  # Zipf
    bits = []
    for _ in range(600):
        sampled = sampler.sample(answer(sampler.needs(), row))
        bits.append(-math.log2(sampled.prob))
    assert np.mean(bits[100:]) == pytest.approx(3.0, abs=0.15)


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("row", [np.zeros(5), np.array([9.0, 0, 0, 0, 0]), np.array([1.0])])
def test_mirostat_on_odd_rows(version: int, row: NDArray[np.float64]) -> None:
    params = SamplingParams(mirostat=version, mirostat_tau=20.0, mirostat_eta=1.0)  # type: ignore[arg-type]
    sampler = make(params, n_vocab=row.size)
    for _ in range(2000):
        assert sampler.sample(Candidates(row=row.astype(np.float32))).prob > 0.0


def test_adaptive_p_comes_near_its_target() -> None:
    row = np.log(np.array([0.5, 0.2, 0.15, 0.1, 0.05])).astype(np.float32)
    probs = np.exp(row.astype(np.float64))
    means = []
    for target in (0.1, 0.5):
        # Whatever its place among the samplers, it comes last: after the top-k here.
        params = SamplingParams(
            **OFF | {"top_k": 4}, samplers=("adaptive_p", "top_k"), adaptive_target=target, seed=8
        )
        sampler = make(params, n_vocab=5)
        drawn = [sampler.sample(answer(sampler.needs(), row)).token for _ in range(1500)]
        assert 4 not in drawn
        means.append(np.mean(probs[drawn]) / 0.95)
    assert means[0] < 0.18 < 0.35 < means[1]
    off = make(SamplingParams(**OFF, samplers=("adaptive_p",), seed=8), n_vocab=5)
    assert off.sample(answer(off.needs(), row), n_probs=5).top[0][1] == pytest.approx(0.5)


def test_adaptive_p_follows_its_formula() -> None:
    params = SamplingParams(
        **OFF, samplers=("adaptive_p",), adaptive_target=0.4, adaptive_decay=0.5, seed=1
    )
    sampler = make(params, n_vocab=4)
    row = np.array([2.0, 1.0, 0.5, -math.inf], np.float32)
    probs = np.exp(row.astype(np.float64))
    probs /= probs.sum()
    total, weight = 0.4 * 2.0, 2.0
    for _ in range(20):
        sampled = sampler.sample(answer(sampler.needs(), row), n_probs=4)
        away = np.abs(probs - np.clip(0.8 - total / weight, 0.0, 1.0)) / 0.3
        expected = np.exp(5.0 - 10.0 * away**2 / (1.0 + away)) * (probs > 0.0)
        expected /= expected.sum()
        assert dict(sampled.top) == pytest.approx(dict(enumerate(expected[:3])))
        total, weight = probs[sampled.token] + 0.5 * total, 1.0 + 0.5 * weight
