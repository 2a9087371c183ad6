"""Sampling against recorded outputs of llama.cpp, and against independent references.

How data/sampling.json was made is said in its note.
"""

from __future__ import annotations

import json
import math
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawing import answer, make
from hypothesis import given, settings
from hypothesis import strategies as st

from gguf_serve.engine.errors import EngineError, RequestError
from gguf_serve.engine.sampling.penalties import Dry, Repetition, suffix_lengths
from gguf_serve.engine.sampling.sampler import Candidates, LogitNeeds, Sampled, Sampler, logprob
from gguf_serve.engine.sampling_params import SamplingParams

RECORDED = json.loads((Path(__file__).parents[1] / "data" / "sampling.json").read_text())
OFF: dict[str, Any] = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
ALL_SAMPLERS = SamplingParams().samplers


def params_of(recorded: dict[str, Any]) -> SamplingParams:
    given: dict[str, Any] = {"dry_sequence_breakers": (), **recorded, "seed": 1}
    bias = [(token, -math.inf if b is None else b) for token, b in given.get("logit_bias", ())]
    lists = {k: tuple(v) for k, v in given.items() if isinstance(v, list)}
    return SamplingParams(**{**given, **lists, "logit_bias": tuple(bias)})


def assert_same(sampled: Sampled, expected: list[list[float]]) -> None:
    got = {token: p for token, p in sampled.top if p > 1e-8}
    want = {int(token): p for token, p in expected}
    for token in got.keys() | want.keys():
        assert got.get(token, 0.0) == pytest.approx(want.get(token, 0.0), abs=1e-5), token
    assert got.keys() >= {token for token, p in want.items() if p > 1e-6}
    assert sampled.prob == pytest.approx(got[sampled.token])


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: case["name"])
def test_distribution_is_llama_cpps(case: dict[str, Any]) -> None:
    row = np.array(case["logits"], np.float32)
    sampler = make(params_of(case["params"]), prompt=tuple(case["history"]))
    assert_same(sampler.sample(answer(sampler.needs(), row), n_probs=row.size), case["probs"])


@pytest.mark.parametrize("case", RECORDED["cases"], ids=lambda case: case["name"])
def test_whole_row_gives_the_same(case: dict[str, Any]) -> None:
    row = np.array(case["logits"], np.float32)
    sampler = make(params_of(case["params"]), prompt=tuple(case["history"]))
    if sampler.needs() == LogitNeeds(1, False, []):
        assert sampler.sample(answer(sampler.needs(), row)).token == row.argmax()
    else:
        assert_same(sampler.sample(Candidates(row=row), n_probs=row.size), case["probs"])


@pytest.mark.parametrize("case", RECORDED["breakers"], ids=lambda case: case["name"])
def test_dry_breakers_are_llama_cpps(case: dict[str, Any]) -> None:
    pieces = {int(token): text.encode("latin1") for token, text in case["pieces"].items()}
    n_vocab = max(pieces) + 1
    row = np.full(n_vocab, -np.inf, np.float32)
    row[case["ids"]] = case["logits"]
    sampler = Sampler(
        params_of(case["params"]),
        n_vocab=n_vocab,
        eog_ids=frozenset(),
        n_ctx=4096,
        prompt=case["history"],
        encode=lambda text: case["encode"][text],
        pieces=lambda token: pieces.get(token, b""),
    )
    assert_same(sampler.sample(answer(sampler.needs(), row), n_probs=n_vocab), case["probs"])


def test_many_biases_cost_little() -> None:
    """Those of a whole script, of the vocabulary of a large model: less than to look at each."""
    row = np.random.default_rng(1).normal(size=150_000).astype(np.float32)
    bias = tuple((token, -math.inf) for token in range(60_000))
    sampler = make(SamplingParams(seed=1, logit_bias=bias), row.size)
    candidates = answer(sampler.needs()._replace(full_row=True), row)

    def sample() -> None:
        assert sampler.sample(candidates).token >= 60_000

    def look() -> None:
        biased = row.copy()
        for token, value in bias:
            biased[token] += value

    def seconds(work: Callable[[], None]) -> float:
        begin = time.thread_time()
        work()
        return time.thread_time() - begin

    assert min(seconds(sample) for _ in range(5)) < min(seconds(look) for _ in range(5))


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        (SamplingParams(), LogitNeeds(40, False, [])),
        (SamplingParams(temperature=0.0), LogitNeeds(1, False, [])),
        (
            SamplingParams(temperature=-1.0, top_k=0, top_p=0.5, top_n_sigma=1.0),
            LogitNeeds(1, False, []),
        ),
        (SamplingParams(temperature=0.0, mirostat=1), LogitNeeds(1, False, [])),
        (SamplingParams(top_k=1, xtc_probability=1.0), LogitNeeds(1, False, [])),
        (SamplingParams(temperature=0.0, logit_bias=((3, -1.0),)), LogitNeeds(2, False, [])),
        (SamplingParams(temperature=0.0, logit_bias=((3, 1.0),)), LogitNeeds(1, False, [3])),
        (SamplingParams(logit_bias=((3, 1.0), (4, -math.inf))), LogitNeeds(41, False, [3])),
        (SamplingParams(temperature=0.0, typical_p=0.5), LogitNeeds(40, False, [])),
        (SamplingParams(temperature=0.0, xtc_probability=0.5), LogitNeeds(40, False, [])),
        (SamplingParams(top_k=5, samplers=("min_p", "top_k")), LogitNeeds(5, False, [])),
        (SamplingParams(top_k=5, samplers=("temperature", "top_k")), LogitNeeds(5, False, [])),
        (SamplingParams(top_k=500), LogitNeeds(100, False, [])),
        (SamplingParams(top_k=0), LogitNeeds(0, True, [])),
        (SamplingParams(top_k=0, temperature=0.0, samplers=("top_p",)), LogitNeeds(0, True, [])),
        (SamplingParams(top_n_sigma=1.0), LogitNeeds(0, True, [])),
        (SamplingParams(samplers=("top_p", "top_k")), LogitNeeds(0, True, [])),
        (
            SamplingParams(dynatemp_range=0.1, samplers=("temperature", "top_k")),
            LogitNeeds(0, True, []),
        ),
        (SamplingParams(samplers=()), LogitNeeds(0, True, [])),
        (SamplingParams(mirostat=1), LogitNeeds(0, True, [])),
        (SamplingParams(mirostat=2), LogitNeeds(0, True, [])),
    ],
)
def test_needs_as_little_as_is_exact(params: SamplingParams, expected: LogitNeeds) -> None:
    assert make(params, n_vocab=100).needs() == expected


def test_needs_one_more_for_each_token_that_can_only_fall() -> None:
    sampler = make(SamplingParams(repeat_penalty=1.1, repeat_last_n=3), 1000, (7, 8, 9, 8))
    assert sampler.needs() == LogitNeeds(42, False, [])


def test_needs_the_logits_of_tokens_that_may_rise() -> None:
    sampler = make(SamplingParams(repeat_penalty=0.9, repeat_last_n=3), 1000, (7, 8, 9, 8))
    k, full_row, ids = sampler.needs()
    assert (k, full_row, sorted(ids)) == (42, False, [8, 9])
    sampler.accept(5)
    assert sorted(sampler.needs().ids) == [5, 8, 9]
    sampler.accept(5)
    assert sorted(sampler.needs().ids) == [5, 8]


def test_many_candidates_become_the_whole_row() -> None:
    assert make(SamplingParams(top_k=5000), n_vocab=100_000).needs() == LogitNeeds(0, True, [])
    params = SamplingParams(repeat_penalty=1.1, repeat_last_n=-1)
    sampler = make(params, 100_000, tuple(range(3000)))
    assert sampler.needs() == LogitNeeds(0, True, [])


N_SMALL = 12
SOME_PARAMS = st.builds(
    SamplingParams,
    seed=st.integers(0, 2**32 - 1),
    temperature=st.sampled_from([0.0, 0.3, 1.0, 2.0]),
    dynatemp_range=st.sampled_from([0.0, 0.0, 0.5]),
    top_k=st.integers(0, N_SMALL + 1),
    top_p=st.sampled_from([0.2, 0.9, 1.0]),
    min_p=st.sampled_from([0.0, 0.05, 0.5]),
    typical_p=st.sampled_from([0.5, 1.0, 1.0]),
    xtc_probability=st.sampled_from([0.0, 0.5]),
    dry_multiplier=st.sampled_from([0.0, 0.8, -0.8]),
    dry_allowed_length=st.integers(0, 3),
    dry_sequence_breakers=st.just(()),
    repeat_penalty=st.sampled_from([0.7, 1.0, 1.5]),
    repeat_last_n=st.sampled_from([-1, 0, 3, 64]),
    presence_penalty=st.sampled_from([-0.5, 0.0, 0.5]),
    frequency_penalty=st.sampled_from([0.0, 0.5]),
    min_keep=st.integers(0, 4),
    logit_bias=st.lists(
        st.tuples(st.integers(0, N_SMALL - 2), st.sampled_from([-math.inf, -1.0, 0.0, 2.0])),
        max_size=4,
    ).map(tuple),
    samplers=st.one_of(st.just(ALL_SAMPLERS), st.permutations(ALL_SAMPLERS).map(tuple)),
)


@settings(max_examples=300, deadline=None)
@given(
    params=SOME_PARAMS,
    prompt=st.lists(st.integers(0, N_SMALL - 1), max_size=20),
    rows=st.lists(
        st.lists(st.integers(-8, 8), min_size=N_SMALL, max_size=N_SMALL), min_size=1, max_size=5
    ),
)
def test_candidates_give_what_the_row_gives(
    params: SamplingParams, prompt: list[int], rows: list[list[int]]
) -> None:
    """Also where logits tie, as these small integers do."""
    few = make(params, N_SMALL, tuple(prompt))
    all_of_it = make(params, N_SMALL, tuple(prompt))
    for logits in rows:
        row = np.array(logits, np.float32)
        row /= 4
        got = few.sample(answer(few.needs(), row), n_probs=N_SMALL)
        all_of_it.needs()
        if few.needs() == LogitNeeds(1, False, []):
            assert got.token == row.argmax()
        else:
            want = all_of_it.sample(Candidates(row=row), n_probs=N_SMALL)
            assert got.token == want.token
            assert dict(got.top) == pytest.approx(dict(want.top), abs=1e-12)
        few.accept(got.token)
        all_of_it.accept(got.token)


def test_a_penalty_after_min_p_sees_only_what_is_left() -> None:
    """min_keep leaves the three likeliest; the boosted fifth is not among them."""
    params = SamplingParams(
        temperature=1.0,
        min_p=1.0,
        min_keep=3,
        presence_penalty=-9.0,
        top_k=1,
        samplers=("min_p", "penalties", "top_k"),
    )
    sampler = make(params, 6, prompt=(4,))
    row = np.array([5, 4, 3, 2, 1, 0], np.float32)
    assert sampler.sample(answer(sampler.needs(), row)).token == 0


def test_draws_follow_the_distribution() -> None:
    row = np.log(np.array([0.5, 0.3, 0.15, 0.05], np.float32))
    sampler = make(SamplingParams(**OFF, seed=11), n_vocab=4)
    n = 20_000
    counts = Counter(sampler.sample(answer(sampler.needs(), row)).token for _ in range(n))
    for token, p in enumerate([0.5, 0.3, 0.15, 0.05]):
        assert abs(counts[token] - n * p) < 4 * math.sqrt(n * p * (1 - p))


def test_xtc_acts_as_often_as_asked() -> None:
    row = np.log(np.array([0.5, 0.3, 0.2], np.float32))
    params = SamplingParams(**OFF, seed=5, xtc_probability=0.25, xtc_threshold=0.1)
    sampler = make(params, n_vocab=3)
    n = 4000
    tops = [sampler.sample(answer(sampler.needs(), row), n_probs=3).top for _ in range(n)]
    acted = sum(len(top) == 1 for top in tops)
    assert all(top == ((2, 1.0),) for top in tops if len(top) == 1)
    assert abs(acted - n * 0.25) < 4 * math.sqrt(n * 0.25 * 0.75)


def test_a_seed_fixes_the_tokens() -> None:
    rows = np.random.default_rng(0).normal(0, 2, (30, 32)).astype(np.float32)

    def tokens(sampler: Sampler) -> list[int]:
        return [sampler.sample(answer(sampler.needs(), row)).token for row in rows]

    first = tokens(make(SamplingParams(seed=42)))
    assert tokens(make(SamplingParams(seed=42))) == first
    assert tokens(make(SamplingParams(seed=43))) != first
    of_unknown_seed = make(SamplingParams(seed=-1))
    assert of_unknown_seed.seed >= 0
    assert of_unknown_seed.seed != make(SamplingParams(seed=-1)).seed
    again = make(SamplingParams(seed=of_unknown_seed.seed))
    assert tokens(again) == tokens(of_unknown_seed)


@pytest.mark.parametrize("params", [SamplingParams(seed=3), SamplingParams(seed=3, min_p=0.9)])
def test_one_uniform_a_token_whatever_is_left(params: SamplingParams) -> None:
    """Rounding may let one candidate more pass; the later tokens must not depend on that."""
    sampler = make(params)
    row = np.zeros(32, np.float32)
    row[4] = 20.0
    sampler.sample(answer(sampler.needs(), row))
    rest = np.random.Generator(np.random.PCG64(3))
    rest.random()
    assert sampler._uniform() == rest.random()


def test_banned_tokens_are_not_drawn() -> None:
    row = np.array([5.0, 4.0, 3.0, -60.0, -61.0], np.float32)
    params = SamplingParams(**OFF, logit_bias=((0, -math.inf), (1, -math.inf)), ignore_eos=True)
    sampler = make(params, 5, eog_ids=frozenset({2, 4}))
    for _ in range(50):
        assert sampler.sample(answer(sampler.needs(), row)).token == 3
    greedy = make(SamplingParams(temperature=0.0, ignore_eos=True), 5, eog_ids=frozenset({0, 1}))
    assert greedy.sample(answer(greedy.needs(), row)).token == 2


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("top_k", [0, 2])
def test_no_token_left_is_an_error(temperature: float, top_k: int) -> None:
    params = SamplingParams(temperature=temperature, top_k=top_k, ignore_eos=True)
    sampler = make(params, 3, eog_ids=frozenset({0, 1, 2}))
    with pytest.raises(RequestError, match="the logit biases together leave none"):
        sampler.sample(answer(sampler.needs(), np.zeros(3, np.float32)))


@pytest.mark.parametrize(
    "params", [SamplingParams(temperature=0.0), SamplingParams(), SamplingParams(top_k=0)]
)
def test_logits_that_are_no_numbers_are_an_error(params: SamplingParams) -> None:
    sampler = make(params, 3)
    row = np.array([math.nan] * 3, np.float32)
    with pytest.raises(EngineError, match="nan"):
        sampler.sample(answer(sampler.needs(), row))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"repeat_penalty": 0.0}, r"repeat_penalty must be between 1e-09 and 1000000000, not 0.0"),
        (
            {"repeat_penalty": 5e-324},
            r"repeat_penalty must be between 1e-09 and 1000000000, not 5e-324",
        ),
        (
            {"frequency_penalty": -1e308},
            r"between -1000000000 and 1000000000, not -1e\+308",
        ),
        ({"repeat_last_n": -2}, "repeat_last_n must be between -1 and .*, not -2"),
        (
            {"dry_penalty_last_n": -3},
            r"dry_penalty_last_n must be .* 2147483647, not -3",
        ),
        ({"temperature": math.nan}, "temperature must be between .*, not nan"),
        (
            {"dynatemp_exponent": -1.0},
            r"dynatemp_exponent must be between 0 and .*, not -1\.0",
        ),
        ({"mirostat": 3}, "mirostat must be between 0 and 2, not 3"),
        ({"logit_bias": ((32, 1.0),)}, "logit_bias: token 32 is not in 0..31"),
        ({"logit_bias": ((-1, 1.0),)}, "logit_bias: token -1 is not in 0..31"),
        ({"logit_bias": ((1, math.nan),)}, "logit_bias: token 1 has the bias nan"),
        ({"logit_bias": ((1, math.inf),)}, "logit_bias: token 1 has the bias inf"),
        ({"samplers": ("top_q",)}, "unknown sampler 'top_q'"),
        ({"samplers": ("infill",)}, "the sampler infill needs a tokenizer"),
        ({"dry_multiplier": 1.0}, "dry_sequence_breakers need a tokenizer"),
    ],
)
def test_bad_parameters_are_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        make(SamplingParams(**changes))


def test_logprob() -> None:
    row = np.array([1.0, 2.0, -math.inf])
    lse = math.log(np.exp(row).sum())
    assert logprob(2.0, lse) == pytest.approx(math.log(math.e**2 / (math.e + math.e**2)))
    assert logprob(-math.inf, lse) == np.finfo(np.float32).min


def test_repetition_counts_the_window() -> None:
    window = Repetition(3, 1.5, 0.0, 0.0, prompt=(1, 2, 2, 3))
    assert sorted(window.touched()) == [2, 3]
    for token in (3, 3, 4):
        window.accept(token)
    assert sorted(window.touched()) == [3, 4]


def longest_repetitions(history: list[int], allowed: int, limit: int) -> dict[int, int]:
    """DRY by definition: for each place, how many tokens up to it equal the last ones."""
    longest: dict[int, int] = {}
    for i in range(len(history) - 1):
        n = 0
        while n <= i and history[i - n] == history[len(history) - 1 - n]:
            n += 1
        n = min(n, limit)
        if n >= allowed:
            longest[history[i + 1]] = max(n, longest.get(history[i + 1], 0))
    return longest


@settings(max_examples=300, deadline=None)
@given(
    tokens=st.one_of(
        st.lists(st.integers(0, 3), max_size=40), st.lists(st.integers(0, 1), max_size=12)
    ),
    n_prompt=st.integers(0, 20),
    window=st.one_of(st.integers(1, 40), st.integers(1, 6)),
    allowed=st.integers(0, 4),
    breaker=st.sampled_from([None, (3,), (3, 1), (2, 3, 0)]),
)
def test_dry_by_its_definition(
    tokens: list[int],
    n_prompt: int,
    window: int,
    allowed: int,
    breaker: tuple[int, ...] | None,
) -> None:
    heads = {breaker[0]: frozenset({breaker[1:]})} if breaker else {}
    dry = Dry(window, 1.0, 2.0, allowed, heads, tokens[:n_prompt])
    for token in tokens[n_prompt:]:
        dry.accept(token)
    recent = tokens[-window:]
    limit = len(recent)
    if breaker:
        ends = [
            i + len(breaker)
            for i in range(len(recent))
            if tuple(recent[i : i + len(breaker)]) == breaker
        ]
        limit = len(recent) - max(ends, default=0)
    expected = {
        token: -(2.0 ** (n - allowed))
        for token, n in longest_repetitions(recent, allowed, limit).items()
        if breaker != (token,)
    }
    if len(recent) <= allowed or limit < allowed:
        expected = {}
    assert dry.amounts() == expected


def test_dry_is_linear_in_a_history_that_repeats() -> None:
    """A quadratic search would take minutes."""
    began = time.process_time()
    dry = Dry(50_000, 1.0, 1.1, 2, {}, [7] * 50_000)
    for _ in range(5):
        dry.accept(7)
        assert dry.amounts()[7] < -1.0
    assert time.process_time() - began < 10.0


@given(st.lists(st.integers(0, 2), max_size=30))
def test_suffix_lengths(history: list[int]) -> None:
    expected = {}
    for i in range(len(history) - 1):
        n = 0
        while n <= i and history[i - n] == history[-1 - n]:
            n += 1
        if n:
            expected[i] = n
    assert suffix_lengths(history) == expected
