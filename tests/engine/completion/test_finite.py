"""Values that are no numbers: who fails, who goes on, what is forgotten, when health turns red."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from asking import GREEDY, Held, Reply, ask, engine_of, random_prompt, submit
from gguf import GGUFReader
from model_files import copy_model

from gguf_serve.engine.completion.finite import PROBE
from gguf_serve.engine.engine import Engine
from gguf_serve.engine.errors import ModelError
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.request import Embedding, Failed, Finished, Request, Scoring
from gguf_serve.kernels.opencl.platforms import list_devices

OPTIONS = EngineOptions(
    n_ctx=1024, n_parallel=4, n_ubatch=64, n_gpu_layers=0, kernel_family="simd",
    cache_type_k="f32", cache_type_v="f32",
)  # fmt: skip
ODD = 7  # a token whose embedding is no numbers; PROBE has no such character
CLEAN = [token for token in random_prompt(120) if token != ODD]
Start = Callable[..., Engine]


@pytest.fixture(scope="module")
def path(conformance_model: Callable[[str], Path]) -> Path:
    if not list_devices():
        pytest.skip("no OpenCL device")
    return conformance_model("llama-dense")


@pytest.fixture
def start() -> Iterator[Start]:
    engines: list[Engine] = []

    def started(path: Path, **options: object) -> Engine:
        engines.append(engine_of(load_model(path, replace(OPTIONS, **options), lambda share: None)))
        return engines[-1]

    yield started
    for engine in engines:
        engine.close()


def changed(path: Path, target: Path, values: Mapping[str, tuple[int, float]]) -> Path:
    """The model with another value at these places of these tensors."""
    tensors = {tensor.name: np.array(tensor.data) for tensor in GGUFReader(path).tensors}
    for name, (at, value) in values.items():
        tensors[name].reshape(-1)[at] = value
    return copy_model(path, target, tensors)


@pytest.fixture(scope="module")
def odd_path(path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that is sound but for the embedding of one token."""
    n_embd = GGUFReader(path).tensors[0].shape[0]
    values = {"token_embd.weight": (ODD * int(n_embd), float("nan"))}
    return changed(path, tmp_path_factory.mktemp("odd") / "odd.gguf", values)


def failure(reply: Reply) -> str:
    assert isinstance(reply.events[-1], Failed)
    assert not reply.events[-1].by_request
    return reply.events[-1].message


def settled(engine: Engine) -> Engine:
    """After the engine's own request, which comes before this one."""
    ask(engine, [1], 1)
    return engine


def test_a_prompt_that_gives_nan_fails_alone(start: Start, odd_path: Path) -> None:
    engine = start(odd_path)
    expected = ask(engine, CLEAN, 60).tokens
    engine.submit(Request(tuple(CLEAN[::-1]), GREEDY), other := Held())
    other.wait_until_held()
    again, odd = submit(engine, CLEAN, 60), submit(engine, [5, ODD, 9], 4)
    other.go_on()
    message = failure(odd.wait())
    assert "the logits of request 3 in slot 2 are NaN or infinite (--check-tensors" in message
    assert again.wait().tokens == expected
    assert isinstance(other.wait().end, Finished)
    assert settled(engine).healthy
    assert not engine.fault


@pytest.mark.parametrize(
    "fields",
    [
        {"wants": Scoring(2), "max_tokens": 0},
        {"wants": Embedding("mean")},
        {"wants": Embedding("none")},
    ],
)
def test_scores_and_embeddings_fail_too(
    start: Start, odd_path: Path, fields: dict[str, object]
) -> None:
    engine = start(odd_path)
    assert "NaN or infinite" in failure(ask(engine, [5, ODD, 9], **fields))
    assert isinstance(ask(engine, [5, 9], **fields).end, Finished)
    assert engine.healthy


def test_nothing_of_a_broken_prompt_is_found_again(start: Start, odd_path: Path) -> None:
    """What it began with stays."""
    engine = start(odd_path)
    cache = engine._scheduler.cache
    begun = ask(engine, CLEAN, 4)
    n_begun = cache.match(CLEAN)
    assert n_begun >= 64
    odd = [*CLEAN[:70], ODD, *CLEAN]
    failure(ask(engine, odd, 4))
    assert cache.match(odd) == cache.match([*CLEAN[:70], ODD]) <= 70
    assert cache.match(CLEAN) == n_begun
    failure(ask(engine, [ODD, *CLEAN], 4))
    assert cache.match([ODD, *CLEAN]) == 0
    again = ask(engine, CLEAN, 4)
    assert again.n_cached == n_begun
    assert again.tokens == begun.tokens


def test_damaged_pages_are_forgotten(
    start: Start, path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A request that begins with them is recomputed, and what continued them is not found."""
    engine = start(path)
    expected = ask(engine, CLEAN, 8)
    longer = ask(engine, CLEAN + CLEAN[::-1], 8)
    table, n = engine._scheduler.cache.find_pages(CLEAN)
    assert n == len(CLEAN)
    (pages,) = engine._loop.runner.pages
    pages.write_page(0, table[0], np.full(pages.page_bytes, 0xFF, np.uint8))
    with caplog.at_level(logging.WARNING):
        healed = ask(engine, CLEAN, 8)
    assert healed.n_cached
    assert healed.tokens == expected.tokens
    assert "cached tokens were damaged" in caplog.text
    assert ask(engine, CLEAN, 8).tokens == expected.tokens
    assert ask(engine, CLEAN + CLEAN[::-1], 8).tokens == longer.tokens
    assert caplog.text.count("were damaged") == 1
    assert engine.healthy


def test_a_model_that_gives_nan_for_any_text_turns_health_red(
    start: Start, path: Path, tmp_path: Path
) -> None:
    engine = start(changed(path, tmp_path / "m.gguf", {"output_norm.weight": (3, float("nan"))}))
    assert engine.healthy
    failure(ask(engine, CLEAN, 4))
    settled(engine)
    assert not engine.healthy
    assert "any text gives this: the logits of request 1" in engine.fault
    engine.set_adapters([])  # with other adapters it is found out anew
    assert engine.healthy


@pytest.mark.parametrize(
    ("name", "place"),
    [("blk.1.ffn_norm", "after layer 1"), ("output_norm", "after the last layer")],
)
def test_the_layer_is_named(
    start: Start, path: Path, tmp_path: Path, name: str, place: str
) -> None:
    """Weights that are numbers, but too large for what they are multiplied with."""
    large = changed(path, tmp_path / "m.gguf", {f"{name}.weight": (3, 3e38)})
    engine = start(large, check_tensors=True)
    assert failure(ask(engine, CLEAN, 4)).endswith(f"NaN or infinite, first {place}")
    assert failure(ask(engine, CLEAN[:1], 4)).endswith(f"NaN or infinite, first {place}")


def test_check_tensors_names_the_tensor(start: Start, odd_path: Path) -> None:
    with pytest.raises(ModelError, match=r"tensor token_embd\.weight \(F32\) is not a number"):
        start(odd_path, check_tensors=True)


def test_the_probe_is_an_ordinary_text() -> None:
    assert chr(ODD) not in PROBE
