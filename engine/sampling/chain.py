"""Which steps a request's sampling parameters ask for, in their order.

A Stage is made only where its sampler does something; where a greedy choice makes what
comes before it idle, that is left out too. Names, letters and the chain's structure are
those of llama.cpp (common/sampling.cpp).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.sampling import candidates as filters
from gguf_serve.engine.sampling.candidates import LEAST_TEMPERATURE, Filter
from gguf_serve.engine.sampling.feedback import AdaptiveP, Learner, Mirostat
from gguf_serve.engine.sampling_params import SamplingParams, parse_samplers


class Stage(NamedTuple):
    """A step, and what it needs to see of the vocabulary to be exact.

    ``adjust``: changes single tokens. ``scale``: keeps the order. ``first``: keeps the
    ``keeps`` likeliest. ``near``: keeps tokens near the likeliest, whatever the others.
    ``rest``: keeps a number of the likeliest that depends on all. ``other``: anything else.
    """

    step: Filter
    kind: Literal["adjust", "scale", "first", "near", "rest", "other"]
    keeps: int = 0
    learner: Learner | None = None


def repeats_cost(params: SamplingParams) -> bool:
    """Whether the repetition penalties do anything."""
    costs = (params.repeat_penalty, params.frequency_penalty, params.presence_penalty)
    return (
        "penalties" in params.samplers
        and not params.mirostat
        and params.repeat_last_n != 0
        and costs != (1.0, 0.0, 0.0)
    )


def dry_costs(params: SamplingParams) -> bool:
    """Whether the DRY penalty does anything."""
    return (
        "dry" in params.samplers
        and not params.mirostat
        and params.dry_multiplier != 0.0
        and params.dry_base >= 1.0
        and params.dry_penalty_last_n != 0
    )


def build(
    params: SamplingParams,
    *,
    repetition: Filter | None,
    dry: Filter | None,
    infill: Filter | None,
    uniform: Callable[[], float],
    n_vocab: int,
) -> list[Stage]:
    """The stages after the logit bias, up to the draw. Mirostat replaces the chain."""
    if params.mirostat:
        return _shortened(_mirostat(params, n_vocab))
    stages = []
    for name in parse_samplers(params.samplers):
        if name == "penalties":
            stages += [Stage(repetition, "adjust")] if repetition else []
        elif name == "dry":
            stages += [Stage(dry, "adjust")] if dry else []
        elif name == "xtc":
            stages += _xtc(params, uniform)
        elif name == "infill":
            stages += _infill(infill)
        else:
            stages += _STAGES[name](params)
    # It draws, in llama.cpp: whatever the order, it is the last.
    stages.sort(key=lambda stage: stage.learner is not None)
    return _shortened(stages)


def limit(stages: Sequence[Stage]) -> int | None:
    """How many of the likeliest tokens give an exact result; None if it takes them all.

    Each token that an ``adjust`` can lower makes it one more.
    """
    narrowed = False
    for stage in stages:
        if stage.kind == "first":
            return stage.keeps
        if stage.kind in ("rest", "other") or (stage.kind == "adjust" and narrowed):
            return None
        narrowed = narrowed or stage.kind == "near"
    return None


def _shortened(stages: list[Stage]) -> list[Stage]:
    """Where a stage keeps one token only, what decides which: later ones do not matter,
    nor do those just before it that never drop the likeliest.
    """
    for i, stage in enumerate(stages):
        if stage.keeps == 1:
            while i > 0 and stages[i - 1].kind not in ("adjust", "other"):
                i -= 1
            return [*stages[:i], stage]
    return stages


def _xtc(params: SamplingParams, uniform: Callable[[], float]) -> list[Stage]:
    probability, threshold = params.xtc_probability, params.xtc_threshold
    if probability <= 0.0 or threshold > 0.5:
        return []
    return [Stage(filters.xtc(probability, threshold, params.min_keep, uniform), "other")]


def _infill(step: Filter | None) -> list[Stage]:
    if step is None:
        raise RequestError("the sampler infill needs a tokenizer, the model has none")
    return [Stage(step, "other")]


def _mirostat(params: SamplingParams, n_vocab: int) -> list[Stage]:
    """After the temperature, without its dynamic range, as in llama.cpp."""
    t = params.temperature
    scale = [] if t == 1.0 else [_static_temperature(t)]
    if t < LEAST_TEMPERATURE:
        return scale
    made = Mirostat(params.mirostat, params.mirostat_tau, params.mirostat_eta, n_vocab)
    return [*scale, Stage(made.cut, "other", learner=made)]


def _adaptive_p(params: SamplingParams) -> list[Stage]:
    if params.adaptive_target < 0.0:
        return []
    made = AdaptiveP(params.adaptive_target, params.adaptive_decay)
    return [Stage(made, "other", learner=made)]


def _temperature(params: SamplingParams) -> list[Stage]:
    t, spread = params.temperature, params.dynatemp_range
    if spread > 0.0:
        step = filters.dynamic_temperature(t, spread, params.dynatemp_exponent)
        return [Stage(step, "other")]
    return [] if t == 1.0 else [_static_temperature(t)]


def _static_temperature(t: float) -> Stage:
    step = filters.temperature(t)
    return Stage(step, "scale") if t >= LEAST_TEMPERATURE else Stage(step, "first", 1)


def _top_n_sigma(params: SamplingParams) -> list[Stage]:
    n = params.top_n_sigma
    return [Stage(filters.top_n_sigma(n), "rest")] if n > 0.0 else []


def _top_k(params: SamplingParams) -> list[Stage]:
    k = params.top_k
    return [Stage(filters.top_k(k), "first", k)] if k > 0 else []


def _typical_p(params: SamplingParams) -> list[Stage]:
    p = params.typical_p
    return [Stage(filters.typical_p(p, params.min_keep), "other")] if p < 1.0 else []


def _top_p(params: SamplingParams) -> list[Stage]:
    p = params.top_p
    return [Stage(filters.top_p(p, params.min_keep), "rest")] if p < 1.0 else []


def _min_p(params: SamplingParams) -> list[Stage]:
    p = params.min_p
    return [Stage(filters.min_p(p, params.min_keep), "near")] if p > 0.0 else []


_STAGES: dict[str, Callable[[SamplingParams], list[Stage]]] = {
    "top_n_sigma": _top_n_sigma,
    "top_k": _top_k,
    "typ_p": _typical_p,
    "top_p": _top_p,
    "min_p": _min_p,
    "temperature": _temperature,
    "adaptive_p": _adaptive_p,
}
