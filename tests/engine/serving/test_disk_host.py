"""KV pages of evicted prompts in the host's memory, on a device that is said to have its own."""

from __future__ import annotations

import dataclasses
import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from asking import SECONDS, ask, engine_of, random_prompt
from msgspec.structs import replace

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import EngineOptions
from gguf_serve.engine.scheduling.checkpoints import Checkpoints
from gguf_serve.engine.serving import disk as disk_module
from gguf_serve.engine.serving.disk import host_options
from gguf_serve.kernels.opencl.platforms import list_devices

OPTIONS = EngineOptions(
    n_ctx=512, n_parallel=1, n_ubatch=64, n_gpu_layers=0, kernel_family="simd",
    checkpoint_min_step=1 << 20,
)  # fmt: skip
MIB = 1 << 20


@pytest.fixture
def start(conformance_model: Callable[[str], Path]) -> Iterator[Callable[[str], Engine]]:
    engines: list[Engine] = []

    def started(name: str) -> Engine:
        if not list_devices():
            pytest.skip("no OpenCL device")
        model = load_model(conformance_model(name), OPTIONS, lambda share: None)
        assert not model.info.has_own_memory  # a CPU's
        info = replace(model.info, has_own_memory=True)
        kept = host_options(OPTIONS, info, model.scheduler.checkpoints)
        assert kept is not None
        engine = engine_of(model, disk=kept)
        assert engine._disk is not None
        engine._disk._loads._speed = lambda: 0.0  # it computes as fast as memory is copied
        engines.append(engine)
        return engine

    yield started
    for engine in engines:
        engine.close()


@pytest.mark.parametrize("name", ["llama-dense", "falcon-h1-dense"])
def test_a_prompt_that_others_have_displaced(start: Callable[[str], Engine], name: str) -> None:
    """It comes back bit by bit, though the device had no room for it any more."""
    engine, prompt = start(name), random_prompt(330, 1)
    other = [*prompt[:320], 127 - prompt[320], *prompt[321:]]
    ask(engine, prompt, 1)
    in_memory = ask(engine, other, 8, n_probs=128)
    assert engine.wait_until_kept(SECONDS)  # what is displaced before is not
    for seed in (2, 3):
        ask(engine, random_prompt(400, seed), 1)
    assert engine.wait_until_kept(SECONDS)
    assert engine._scheduler.cache.match(prompt) < 32
    again = ask(engine, other, 8, n_probs=128)
    assert again.n_cached == in_memory.n_cached == (320 if name == "llama-dense" else 288)
    assert (again.tokens, again.scores) == (in_memory.tokens, in_memory.scores)
    stats = engine.stats().disk
    assert stats is not None
    assert (stats.place, stats.n_hit_tokens > 0, stats.n_corrupt) == ("ram", True, 0)


def test_it_ends_with_the_engine(
    start: Callable[[str], Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when the server sleeps; what was counted stays."""
    monkeypatch.setattr(disk_module, "CLOSE_SECONDS", SECONDS)  # to the end of its threads
    engine = start("llama-dense")
    ask(engine, random_prompt(330, 4), 1)
    assert engine.wait_until_kept(SECONDS)
    assert engine._disk is not None
    store = weakref.ref(engine._disk._store)
    engine.release()
    gc.collect()
    assert store() is None
    stats = engine.stats().disk
    assert stats is not None
    assert stats.n_written == 10


def test_how_much_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the option says and checkpoints leave, and half of what is free at most."""
    monkeypatch.setattr(disk_module, "available_memory", lambda: 1000 * MIB)
    info: Any = SimpleNamespace(has_own_memory=True)

    def limit(mib: int, n_copies: int = 0) -> int:
        checkpoints = Checkpoints(n_copies, 1, 10 * MIB) if n_copies else None
        kept = host_options(dataclasses.replace(OPTIONS, cache_ram_mib=mib), info, checkpoints)
        return kept.limit // MIB if kept else 0

    assert [limit(100), limit(100, 3), limit(20, 3), limit(0)] == [100, 70, 0, 0]
    assert [limit(8192), limit(-1), limit(-1, 3)] == [500, 500, 470]


def test_a_device_that_shares_the_hosts_memory_has_nothing_of_it() -> None:
    info: Any = SimpleNamespace(has_own_memory=False)
    assert host_options(OPTIONS, info, None) is None
