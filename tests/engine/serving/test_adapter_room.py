"""Adapters that come and go while an engine serves, against the same ones loaded at the start."""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from asking import GREEDY, SECONDS, Reply, ask, assert_same_logits
from model_files import updates_of, write_adapter

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.options import AdapterRoom, EngineOptions
from gguf_serve.engine.request import Delta, Event, Request

PLAIN = EngineOptions(
    n_ctx=1024, n_parallel=2, n_ubatch=64, n_gpu_layers=0, kernel_family="simd",
    cache_type_k="f32", cache_type_v="f32",
)  # fmt: skip
PROMPT = [*range(5, 90)]


def with_room(count: int, *start: tuple[Path, float]) -> EngineOptions:
    return dataclasses.replace(PLAIN, adapter_room=AdapterRoom(count, 8), adapters=start)


def logits(engine: Engine, *scales: tuple[int, float]) -> Reply:
    return ask(engine, PROMPT, 4, n_probs=128, adapters=scales)


@pytest.fixture
def files(conformance_model: Callable[[str], Path], tmp_path: Path) -> list[Path]:
    base = conformance_model("llama-dense")
    some = ("attn_output.weight", "up.weight")
    return [
        write_adapter(tmp_path / "a.gguf", updates_of(base, 1), 8.0),
        write_adapter(tmp_path / "b.gguf", updates_of(base, 2, some), 8.0),
    ]


def test_as_if_they_had_been_loaded_at_the_start(
    files: list[Path], start_engine: Callable[[str, EngineOptions], Engine]
) -> None:
    """Alone, together with one of the start, and after another had their place."""
    first, second = files
    start = start_engine(
        "llama-dense", dataclasses.replace(PLAIN, adapters=((first, 1.0), (second, 1.0)))
    )
    engine = start_engine("llama-dense", with_room(1, (first, 0.0)))
    plain = logits(engine)
    assert_same_logits(plain, logits(start))
    b = engine.load_adapter(second, "b")
    assert [(each.id, each.name) for each in engine.adapters()] == [(0, "a"), (b.id, "b")]
    assert_same_logits(logits(engine, (b.id, 1.0)), logits(start, (1, 1.0)))
    both = logits(engine, (0, 0.5), (b.id, -1.0))
    assert_same_logits(both, logits(start, (0, 0.5), (1, -1.0)))
    engine.unload_adapter(b.id)
    assert_same_logits(logits(engine, (0, 1.0)), logits(start, (0, 1.0)))
    a = engine.load_adapter(first, "again")
    assert_same_logits(logits(engine, (a.id, 1.0)), logits(start, (0, 1.0)))
    assert_same_logits(logits(engine), plain)


def test_a_name_with_another_file_shares_no_prefix(
    files: list[Path], start_engine: Callable[[str, EngineOptions], Engine]
) -> None:
    """Though the second file differs in nothing but its last value, and has the place of the
    first; with the same bytes, what was cached counts."""
    engine = start_engine("llama-dense", with_room(2))
    first = engine.load_adapter(files[0], "a")
    assert logits(engine, (first.id, 1.0)).n_cached == 0
    assert logits(engine, (first.id, 1.0)).n_cached > 0
    data = bytearray(files[0].read_bytes())
    last = np.frombuffer(data, np.float32, offset=len(data) - 4)
    files[1].write_bytes(bytes(data[:-4]) + (last + np.float32(0.5)).tobytes())
    second = engine.load_adapter(files[1], "a", replaces=first.id)
    assert [(each.id, each.path) for each in engine.adapters()] == [(second.id, files[1])]
    assert logits(engine, (second.id, 1.0)).n_cached == 0
    third = engine.load_adapter(files[0], "a", replaces=second.id)
    assert logits(engine, (third.id, 1.0)).n_cached > 0
    with pytest.raises(RequestError, match=f"no LoRA adapter {first.id}, of 1 with the ids"):
        logits(engine, (first.id, 1.0))


def test_what_a_request_has_stays(
    files: list[Path], start_engine: Callable[[str, EngineOptions], Engine]
) -> None:
    """Until it ends nobody takes its adapter's place; loading beside it changes nothing of it."""
    engine = start_engine("llama-dense", with_room(2))
    first = engine.load_adapter(files[0], "a")
    alone = ask(engine, PROMPT, 200, adapters=((first.id, 1.0),))
    running, is_writing, may_end = Reply(), threading.Event(), threading.Event()

    def hear(event: Event) -> None:
        """Once it writes, it goes on only while the engine is asked for something else, too."""
        running(event)
        if isinstance(event, Delta):
            is_writing.set()
            while not (engine._mailbox or may_end.wait(0.001)):
                pass

    engine.submit(Request(tuple(PROMPT), GREEDY, 200, adapters=((first.id, 1.0),)), hear)
    assert is_writing.wait(SECONDS)
    engine.unload_adapter(first.id)
    second = engine.load_adapter(files[1], "b")
    with pytest.raises(RequestError, match="requests under way still use"):
        engine.load_adapter(files[1], "c")
    may_end.set()
    assert running.wait().tokens == alone.tokens
    engine.load_adapter(files[1], "c")
    with pytest.raises(RequestError, match=r"all 2 places .* unload one first"):
        engine.load_adapter(files[1], "d")
    engine.unload_adapter(second.id)
    engine.load_adapter(files[1], "d")


def test_what_is_refused(
    conformance_model: Callable[[str], Path],
    files: list[Path],
    tmp_path: Path,
    start_engine: Callable[[str, EngineOptions], Engine],
) -> None:
    """Nothing of it changes what is loaded."""
    base = conformance_model("llama-dense")
    engine = start_engine("llama-dense", with_room(1, (files[0], 1.0)))
    token = write_adapter(tmp_path / "t.gguf", updates_of(base, 1, ("token_embd.weight",)), 8.0)
    updates = updates_of(base, 1, ("attn_output.weight",))
    wide = {name: (np.tile(a, (2, 1)), np.tile(b, 2)) for name, (a, b) in updates.items()}
    endless = {name: (a * np.float32("inf"), b) for name, (a, b) in updates.items()}
    refused = {
        token: "an adapter of token_embd.weight can be loaded at the start only",
        write_adapter(tmp_path / "w.gguf", wide, 8.0): r"rank 16, there is room for 8",
        write_adapter(tmp_path / "n.gguf", endless, 8.0): "NaN or infinite",
        write_adapter(tmp_path / "q.gguf", updates, 8.0, "qwen2"): "an adapter of qwen2",
        base: "general.type and adapter.type",
        tmp_path / "none.gguf": "none.gguf",
    }
    for path, message in refused.items():
        with pytest.raises(RequestError, match=message):
            engine.load_adapter(path, "x")
    with pytest.raises(RequestError, match="LoRA adapter a was loaded at the start: it stays"):
        engine.unload_adapter(0)
    with pytest.raises(RequestError, match="there is no LoRA adapter 7"):
        engine.unload_adapter(7)
    assert [each.name for each in engine.adapters()] == ["a"]
    without = start_engine("llama-dense", PLAIN)
    with pytest.raises(RequestError, match="no room for LoRA adapters"):
        without.load_adapter(files[0], "a")
