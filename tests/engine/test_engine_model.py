"""The engine on a small random model, whose 128 tokens are the ASCII characters."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from asking import GREEDY, SECONDS, Reply, ask, at_once, engine_of, random_prompt, submit
from conformance_data import reference as reference_of
from stepping import Floats, Stepper, sequence

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.gguf.file import open_gguf
from gguf_serve.engine.loading.loader import Model, load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import (
    Delta,
    Embedded,
    Embedding,
    Finished,
    PromptScored,
    Ranking,
    Request,
    Scoring,
    Started,
    TokenScore,
)
from gguf_serve.engine.sampling_params import SamplingParams
from gguf_serve.kernels.opencl.device import open_device
from gguf_serve.kernels.opencl.program import Programs

OPTIONS = EngineOptions(
    n_ctx=2048, n_parallel=8, n_ubatch=64, n_gpu_layers=0, kernel_family="simd",
    cache_type_k="f32", cache_type_v="f32",
)  # fmt: skip


@pytest.fixture(scope="module")
def model(dense_model: Path) -> Model:
    return load_model(dense_model, OPTIONS, lambda share: None)


@pytest.fixture(scope="module")
def engine(model: Model) -> Iterator[Engine]:
    """Eight slots of 256 tokens, for all tests that leave it in order."""
    engine = engine_of(model)
    yield engine
    assert engine.healthy
    engine.close()


@pytest.fixture
def make_model(dense_model: Path) -> Callable[..., Model]:
    """Loads the model with other options."""
    return lambda **options: load_model(
        dense_model, replace(OPTIONS, **options), lambda share: None
    )


@pytest.fixture
def start() -> Iterator[Callable[..., Engine]]:
    """Starts the engine of a model; it is closed at the end of the test."""
    engines = []

    def started(model: Model, eog_ids: Iterable[int] = ()) -> Engine:
        engines.append(engine_of(model, eog_ids))
        return engines[-1]

    yield started
    for engine in engines:
        engine.close()


@pytest.fixture(scope="module")
def stepper(dense_model: Path) -> Stepper:
    device = open_device(family="simd", use_gpu=False)
    return Stepper(dense_model, device, Programs(device))


@pytest.fixture(scope="module")
def reference() -> tuple[list[int], Floats]:
    """64 tokens and llama.cpp's logits after each of them."""
    return reference_of("llama-dense")


def log_softmax(row: Floats) -> np.ndarray:
    shifted = row.astype(np.float64) - row.max()
    return shifted - np.log(np.exp(shifted).sum())


def stepped(stepper: Stepper, prompt: list[int], n: int) -> tuple[list[int], list[Floats]]:
    """n tokens by argmax, each with the logits that it was chosen by."""
    seq = sequence(prompt, 0, list(range(8)))
    tokens, rows = [], []
    row = stepper.step((seq, len(prompt)))[0][-1]
    for _ in range(n):
        rows.append(row)
        tokens.append(int(row.argmax()))
        seq.tokens.append(tokens[-1])
        row = stepper.step((seq, 1))[0][0]
    return tokens, rows


# What is generated


def test_greedy_is_argmax_step_by_step(engine: Engine, stepper: Stepper) -> None:
    prompt = random_prompt(37)
    tokens, _ = stepped(stepper, prompt, 40)
    reply = ask(engine, prompt, 40)
    assert reply.tokens == tokens
    assert reply.text == bytes(tokens).decode()
    assert isinstance(reply.events[0], Started)
    assert reply.events[0].n_prompt == 37
    assert (reply.end.reason, reply.end.truncated) == ("limit", False)
    timings = reply.end.timings
    assert (timings.cache_n, timings.prompt_n, timings.predicted_n) == (0, 37, 40)
    assert timings.prompt_ms > 0
    assert timings.predicted_ms > 0


def test_a_seed_gives_the_same_tokens_in_any_company(engine: Engine) -> None:
    """Prompts of one to several forwards, beginning and ending at different times."""
    lengths = [3, 90, 17, 130, 32, 1, 64, 65]
    jobs = [
        (random_prompt(n, 1), 20 + 5 * i, SamplingParams(seed=i, temperature=1.0, top_k=0))
        for i, n in enumerate(lengths)
    ]
    busy = [submit(engine, *job, cache_prompt=False) for job in jobs]
    for reply, job in zip(busy, jobs, strict=True):
        alone = ask(engine, *job, cache_prompt=False)
        assert reply.wait().tokens == alone.tokens
        assert len(alone.tokens) == job[1]
    assert len({tuple(reply.tokens[:20]) for reply in busy}) == len(jobs)


def test_another_seed_gives_other_tokens(engine: Engine) -> None:
    prompt = random_prompt(5)
    texts = {
        ask(engine, prompt, 20, SamplingParams(seed=seed, temperature=1.0)).text
        for seed in range(4)
    }
    assert len(texts) == 4


def test_a_stop_string_ends_the_text_before_it(engine: Engine) -> None:
    prompt = random_prompt(11, 2)
    whole = ask(engine, prompt, 20).text
    word = whole[6:9]
    reply = ask(engine, prompt, 20, stop=(word, "no such"))
    assert reply.text == whole[: whole.index(word)]
    assert (reply.end.reason, reply.end.stopping_word) == ("word", word)


def test_a_token_that_ends_generation(
    engine: Engine, make_model: Callable[..., Model], start: Callable[..., Engine]
) -> None:
    prompt = random_prompt(11, 3)
    tokens = ask(engine, prompt, 20).tokens
    end = next(token for token in tokens[3:] if token not in tokens[:3])
    n = tokens.index(end)
    ending = start(make_model(), [end])
    reply = ask(ending, prompt, 20)
    assert reply.text == bytes(tokens[:n]).decode()
    assert (reply.end.reason, reply.end.timings.predicted_n) == ("eos", n + 1)
    ignoring = ask(ending, prompt, 20, replace(GREEDY, ignore_eos=True))
    assert ignoring.tokens[:n] == tokens[:n]
    assert end not in ignoring.tokens
    assert len(ignoring.tokens) == 20


def test_the_end_of_the_context_truncates(
    make_model: Callable[..., Model], start: Callable[..., Engine]
) -> None:
    """8 tokens of prompt and 56 generated ones fill a slot of 64."""
    engine = start(make_model(n_ctx=128, n_parallel=2))
    reply = ask(engine, random_prompt(8), -1)
    assert (reply.end.reason, reply.end.truncated) == ("limit", True)
    assert reply.end.timings.predicted_n == 56
    enough = ask(engine, random_prompt(8), 55)
    assert (enough.end.reason, enough.end.truncated) == ("limit", False)
    assert enough.tokens == reply.tokens[:55]


def test_the_longest_prompt(engine: Engine) -> None:
    reply = ask(engine, random_prompt(255), -1)
    assert (reply.end.truncated, reply.end.timings.predicted_n) == (True, 1)


def test_a_chosen_slot(engine: Engine) -> None:
    reply = ask(engine, random_prompt(4), 1, id_slot=13)
    assert reply.all(Started)[0].id_slot == 13 % 8


def test_cancelling_during_the_prompt_frees_slot_and_pages(
    make_model: Callable[..., Model],
    start: Callable[..., Engine],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = make_model(n_ubatch=8)
    begin = model.runner.begin
    entered, gate, sizes = threading.Event(), threading.Event(), []

    def held(*arguments: object) -> object:
        entered.set()
        assert gate.wait(SECONDS)
        sizes.append(sum(chunk.count for chunk in arguments[0]))
        return begin(*arguments)

    monkeypatch.setattr(model.runner, "begin", held)
    engine, reply = start(model), Reply()
    ticket = engine.submit(Request(tuple(random_prompt(100)), GREEDY), reply)
    assert entered.wait(SECONDS)
    engine.cancel(ticket)
    engine.cancel(ticket)
    gate.set()
    assert [type(event) for event in reply.wait().events] == [Started, Finished]
    assert reply.end.reason == "cancelled"
    assert len(sizes) == 1
    assert sizes[0] <= 8
    assert model.scheduler.slots == [None] * 8
    assert model.scheduler.cache.stats().n_used == 0
    assert len(ask(engine, random_prompt(5)).tokens) == 12


# The prefix cache


def test_a_prompt_is_computed_once(engine: Engine, model: Model) -> None:
    prompt = random_prompt(75, 4)
    first, second = ask(engine, prompt), ask(engine, prompt)
    assert (first.n_cached, second.n_cached) == (0, 74)
    assert second.tokens == first.tokens
    assert (second.end.timings.cache_n, second.end.timings.prompt_n) == (74, 1)
    other = [*prompt[:50], (prompt[50] + 1) % 128, *prompt[51:]]
    assert ask(engine, other).n_cached == 50
    assert model.scheduler.cache.stats().n_used == 0


def test_an_answer_is_a_prefix_too(engine: Engine) -> None:
    prompt = random_prompt(20, 5)
    first = ask(engine, prompt, 30)
    longer = [*prompt, *first.tokens, 1, 2, 3]
    again = ask(engine, longer)
    assert again.n_cached == 20 + 29  # the last one was sampled, not computed
    assert again.tokens == ask(engine, longer, cache_prompt=False).tokens


def test_without_the_cache(engine: Engine) -> None:
    prompt = random_prompt(40, 6)
    first = ask(engine, prompt)
    again = ask(engine, prompt, cache_prompt=False)
    assert again.n_cached == 0
    assert again.tokens == first.tokens


def test_pausing_for_want_of_pages_changes_nothing(
    engine: Engine, make_model: Callable[..., Model], start: Callable[..., Engine]
) -> None:
    """Four sequences of 100 tokens share 8 pages, which two of them fill."""
    model = make_model(n_ctx=256, n_parallel=-1)
    small = start(model)
    jobs = [
        (random_prompt(40, 10 + i), 60, SamplingParams(seed=i, temperature=1.0)) for i in range(4)
    ]
    with at_once(small):
        replies = [submit(small, *job) for job in jobs]
    for reply, job in zip(replies, jobs, strict=True):
        assert reply.wait().tokens == ask(engine, *job).tokens
        assert reply.end.timings.predicted_n == 60
    assert model.scheduler.n_preempted > 0
    assert model.scheduler.cache.stats().n_used == 0


# Scores


def assert_scored(score: TokenScore, token: int, expected: np.ndarray, n_top: int) -> None:
    """A token's log-probability and those of the likeliest, best first."""
    __tracebackhide__ = True
    assert (score.id, score.piece) == (token, bytes([token]))
    assert score.logprob == pytest.approx(expected[token], abs=2e-5)
    best = np.argsort(-expected, kind="stable")[:n_top]
    assert [i for i, _, _ in score.top] == best.tolist()
    assert [piece for _, piece, _ in score.top] == [bytes([i]) for i in best]
    assert [v for _, _, v in score.top] == pytest.approx(expected[best].tolist(), abs=2e-5)


def assert_prompt_scored(reply: Reply, reference: tuple[list[int], Floats], n_top: int) -> None:
    """Log-softmax of the reference's logits; the first token has no score."""
    __tracebackhide__ = True
    tokens, logits = reference
    (scored,) = reply.all(PromptScored)
    assert len(scored.scores) == len(tokens)
    assert scored.scores[0] is None
    for score, row, token in zip(scored.scores[1:], logits[:-1], tokens[1:], strict=True):
        assert_scored(score, token, log_softmax(row), n_top)


@pytest.mark.parametrize("n_top", [0, 3])
def test_scores_of_a_prompt(
    engine: Engine, reference: tuple[list[int], Floats], n_top: int
) -> None:
    reply = ask(engine, reference[0], 0, wants=Scoring(n_top))
    assert [type(event) for event in reply.events] == [Started, PromptScored, Finished]
    assert_prompt_scored(reply, reference, n_top)
    assert (reply.end.reason, reply.end.timings.predicted_n) == ("limit", 0)


def test_scores_of_a_prompt_in_pieces_before_its_answer(
    make_model: Callable[..., Model],
    start: Callable[..., Engine],
    engine: Engine,
    reference: tuple[list[int], Floats],
) -> None:
    reply = ask(start(make_model(n_ubatch=10)), reference[0], 5, wants=Scoring(1))
    assert [type(event) for event in reply.events[:3]] == [Started, PromptScored, Delta]
    assert_prompt_scored(reply, reference, 1)
    assert reply.tokens == ask(engine, reference[0], 5).tokens


def test_a_prompt_of_one_token_has_no_score(engine: Engine) -> None:
    reply = ask(engine, [5], 0, wants=Scoring(2))
    assert reply.all(PromptScored) == [PromptScored((None,))]


def test_scores_of_generated_tokens(engine: Engine, stepper: Stepper) -> None:
    prompt = random_prompt(21, 7)
    tokens, rows = stepped(stepper, prompt, 8)
    reply = ask(engine, prompt, 8, n_probs=5)
    for score, token, row in zip(reply.scores, tokens, rows, strict=True):
        assert_scored(score, token, log_softmax(row), 5)
    assert not ask(engine, prompt, 8).scores


def test_scores_of_tokens_that_are_not_the_likeliest(engine: Engine, stepper: Stepper) -> None:
    """The scores are of the raw logits, whatever the samplers make of them."""
    prompt = random_prompt(21, 8)
    sampling = SamplingParams(seed=3, temperature=5.0, top_k=0, top_p=1.0, min_p=0.0)
    reply = ask(engine, prompt, 12, sampling, n_probs=1)
    seq = sequence([*prompt, *reply.tokens], 0, list(range(8)))
    rows = stepper.step((seq, len(seq.tokens)))[0][len(prompt) - 1 : -1]
    for score, token, row in zip(reply.scores, reply.tokens, rows, strict=True):
        assert_scored(score, token, log_softmax(row), 1)
    assert any(score.id != score.top[0][0] for score in reply.scores)


@pytest.mark.parametrize("pooling", ["none", "mean", "last"])
def test_embeddings_of_a_decoder(
    engine: Engine, stepper: Stepper, pooling: str, dense_model: Path
) -> None:
    """Hidden states after the last norm, beside a stream: through the output matrix they are
    the logits."""
    prompt = np.random.default_rng(3).integers(128, size=150).tolist()
    beside = submit(engine, range(20), max_tokens=30)
    reply = ask(engine, prompt, wants=Embedding(pooling))
    assert reply.end.reason == "limit"
    assert reply.n_cached == 0
    (embedded,) = reply.all(Embedded)
    logits = stepper.run(sequence(prompt, 0, [*range(5)]), [90, 60])
    expected = {"none": logits, "mean": logits.mean(0)[None], "last": logits[-1:]}[pooling]
    with open_gguf(dense_model) as file:
        output = file.data("output.weight").view(np.float32).reshape(stepper.n_vocab, -1)
    assert np.abs(np.array(embedded.vectors) @ output.T - expected).max() <= 1e-3
    assert beside.wait().end.reason == "limit"


def test_what_cannot_be_embedded(engine: Engine) -> None:
    with pytest.raises(RequestError, match="no head for ranking"):
        ask(engine, [1], wants=Ranking())


@pytest.mark.parametrize(("name", "shown"), [("int8", True), ("int16", False)])
def test_the_type_of_activations(
    make_model: Callable[..., Model], start: Callable[..., Engine], name: str, shown: bool
) -> None:
    info = start(make_model(activation_type=name)).info
    assert info.driver.endswith(", activations in int8") == shown
