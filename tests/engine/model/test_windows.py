"""Layers with a sliding window keep their window only, and nobody sees a difference."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from asking import ask, assert_same_logits, engine_of, random_prompt, submit
from msgspec.structs import replace

from gguf_serve.engine.architecture.arch import Architecture, Hyperparameters
from gguf_serve.engine.architecture.hyperparameters import read_hyperparameters
from gguf_serve.engine.engine import Engine
from gguf_serve.engine.gguf.file import GGUFFile
from gguf_serve.engine.loading import preparation
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.kernels.opencl.platforms import list_devices

# A ring of 4 pages of 32 tokens: windows of 32 and steps of 64 tokens.
OPTIONS = EngineOptions(
    n_ctx=1024, n_parallel=2, n_ubatch=64, n_gpu_layers=0, kernel_family="simd",
    cache_type_k="f32", cache_type_v="f32",
)  # fmt: skip
WINDOW = 32  # llama4 has none of its own in its file
NAMES = [
    "gemma3-dense", "gemma4-e2b", "gpt-oss-moe", "llama4-moe", "mimo2-moe", "deepseek4-moe",
]  # fmt: skip


def read_with_window(gguf: GGUFFile, arch: Architecture) -> Hyperparameters:
    return replace(read_hyperparameters(gguf, arch), window=WINDOW)


@pytest.fixture(scope="module", params=NAMES)
def engines(
    request: pytest.FixtureRequest, conformance_model: Callable[[str], Path]
) -> Iterator[tuple[Engine, Engine]]:
    """One with rings, and one whose layers keep everything."""
    if not list_devices():
        pytest.skip("no OpenCL device")
    path = conformance_model(request.param)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "read_hyperparameters", read_with_window)
        both = [
            engine_of(
                load_model(path, dataclasses.replace(OPTIONS, swa_full=full), lambda share: None)
            )
            for full in (False, True)
        ]
    yield both[0], both[1]
    for engine in both:
        assert engine.healthy
        engine.close()


def test_it_takes_less_memory(engines: tuple[Engine, Engine]) -> None:
    ring, full = engines
    assert ring.info.kv_bytes < full.info.kv_bytes


def test_rings_go_round(engines: tuple[Engine, Engine]) -> None:
    """Prompts and generation of several rounds, two at a time."""
    prompts = [random_prompt(300, 1), random_prompt(45, 2)]
    replies = [
        [submit(engine, prompt, 150, n_probs=128, cache_prompt=False) for prompt in prompts]
        for engine in engines
    ]
    for ring, full in zip(*replies, strict=True):
        assert_same_logits(ring.wait(), full.wait())


def test_a_prefix_is_shared_where_its_window_is_kept(engines: tuple[Engine, Engine]) -> None:
    """In the other slot, whose ring then has the window from a checkpoint."""
    ring, full = engines
    first = random_prompt(200, 3)
    answer = ask(ring, first, 60, id_slot=0).tokens
    second = [*first, *answer, *random_prompt(100, 4)]
    reply = ask(ring, second, 40, n_probs=128, id_slot=1)
    assert reply.n_cached == 259
    assert_same_logits(reply, ask(full, second, 40, n_probs=128))
    third = [*first[:150], *random_prompt(40, 5)]  # its window is overwritten and not kept
    reply = ask(ring, third, 10, n_probs=128)
    assert reply.n_cached == 0
    assert_same_logits(reply, ask(full, third, 10, n_probs=128))
