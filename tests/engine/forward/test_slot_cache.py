"""Slots saved to files and restored by another engine; erased; only when they are idle."""

from __future__ import annotations

import threading
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from asking import SECONDS, ask, assert_same_logits, random_prompt, submit

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.errors import EngineStoppedError, RequestError
from gguf_serve.engine.options import EngineOptions, RopeOptions
from gguf_serve.engine.serving import slots

OPTIONS = EngineOptions(
    n_ctx=512, n_parallel=2, n_ubatch=64, n_gpu_layers=0, kernel_family="simd"
)  # fmt: skip
PROMPT = random_prompt(100, 1)

Start = Callable[..., Engine]


@pytest.fixture
def start(start_engine: Callable[[str, EngineOptions], Engine]) -> Start:
    """Starts a model: two slots of 256 tokens."""
    return lambda name, **changes: start_engine(name, replace(OPTIONS, **changes))


@pytest.mark.parametrize("name", ["llama-dense", "falcon-h1-dense", "mamba2-dense"])
def test_another_engine_goes_on(start: Start, tmp_path: Path, name: str) -> None:
    first, other = start(name), start(name)
    answer = ask(first, PROMPT, 20, id_slot=1).tokens
    saved = first.save_slot(1, tmp_path / "slot").result(SECONDS)
    assert saved.n_tokens == 119  # the last one was never computed
    assert saved.n_bytes == (tmp_path / "slot").stat().st_size
    restored = other.restore_slot(0, tmp_path / "slot").result(SECONDS)
    assert (restored.n_tokens, restored.n_bytes) == (saved.n_tokens, saved.n_bytes)
    assert other.stats().n_pages_used == 0
    again = other.save_slot(0, tmp_path / "again").result(SECONDS)
    assert again.n_tokens == 119
    assert (tmp_path / "again").read_bytes() == (tmp_path / "slot").read_bytes()
    second = [*PROMPT, *answer, *random_prompt(10, 2)]
    reply = ask(other, second, 8, n_probs=128)
    assert reply.n_cached == 119
    assert_same_logits(reply, ask(other, second, 8, n_probs=128, cache_prompt=False))


@pytest.mark.parametrize("name", ["llama-dense", "falcon-h1-dense"])
def test_nothing_of_a_damaged_file_is_used(start: Start, tmp_path: Path, name: str) -> None:
    """The last byte of what it holds, so that all the others have been read."""
    engine, path = start(name), tmp_path / "slot"
    expected = ask(engine, PROMPT, 20).tokens
    engine.save_slot(0, path).result(SECONDS)
    whole = path.read_bytes()
    path.write_bytes(whole[:-5] + bytes([whole[-5] ^ 1]) + whole[-4:])
    other = start(name)
    with pytest.raises(RequestError, match="slot is damaged: its checksum"):
        other.restore_slot(0, path).result(SECONDS)
    reply = ask(other, PROMPT, 20)
    assert (reply.n_cached, reply.tokens) == (0, expected)


def test_a_file_of_another_model(start: Start, tmp_path: Path) -> None:
    first, other = start("llama-dense"), start("qwen2-dense")
    ask(first, PROMPT)
    first.save_slot(0, tmp_path / "slot").result(SECONDS)
    with pytest.raises(RequestError, match="made with model"):
        other.restore_slot(0, tmp_path / "slot").result(SECONDS)
    assert other.healthy


def test_a_file_made_with_other_options(start: Start, tmp_path: Path) -> None:
    """The same pages would hold other numbers."""
    first, other = start("llama-dense"), start("llama-dense", rope=RopeOptions(base=5e5))
    ask(first, PROMPT, id_slot=0)
    first.save_slot(0, tmp_path / "slot").result(SECONDS)
    with pytest.raises(RequestError, match="made with RoPE options"):
        other.restore_slot(0, tmp_path / "slot").result(SECONDS)


def test_a_file_of_a_shorter_context(start: Start, tmp_path: Path) -> None:
    """With LongRoPE, keys of contexts beyond the original 256 tokens are others."""
    first, other = start("phi3-dense", n_ctx=256), start("phi3-dense", n_ctx=1024)
    ask(first, PROMPT, 1, id_slot=0)
    first.save_slot(0, tmp_path / "slot").result(SECONDS)
    with pytest.raises(RequestError, match="made with RoPE factors 'short', here it is 'long'"):
        other.restore_slot(0, tmp_path / "slot").result(SECONDS)


@pytest.mark.parametrize(
    ("token", "message"), [(-1, "has images or sounds"), (1 << 40, "not in the vocabulary")]
)
def test_a_file_with_tokens_that_do_not_exist(
    start: Start, tmp_path: Path, token: int, message: str
) -> None:
    """Negative ones are an image's, which needs a projector."""
    engine = start("llama-dense")
    ask(engine, PROMPT, id_slot=0)
    engine.save_slot(0, tmp_path / "slot").result(SECONDS)
    data = (tmp_path / "slot").read_bytes()
    old = np.array(PROMPT, "<i8").tobytes()
    data = data[:-4].replace(old, np.array([token, *PROMPT[1:]], "<i8").tobytes())
    (tmp_path / "slot").write_bytes(data + zlib.crc32(data).to_bytes(4, "little"))
    with pytest.raises(RequestError, match=message):
        engine.restore_slot(0, tmp_path / "slot").result(SECONDS)
    assert engine.healthy


@pytest.mark.parametrize("name", ["write_slot_file", "read_slot_file"])
def test_a_slow_disk_holds_nobody_up(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Not other requests, in the same slot neither; nor does another slot wait to be erased."""
    engine = start("llama-dense")
    ask(engine, PROMPT, 5, id_slot=0)
    engine.save_slot(0, tmp_path / "slot").result(SECONDS)
    reached, spins = threading.Event(), threading.Event()
    original = getattr(slots, name)

    def slow(*arguments: object) -> object:
        reached.set()
        assert spins.wait(SECONDS)
        return original(*arguments)

    monkeypatch.setattr(slots, name, slow)
    operation = engine.save_slot if name == "write_slot_file" else engine.restore_slot
    future = operation(0, tmp_path / "slot")
    assert reached.wait(SECONDS)
    assert len(ask(engine, PROMPT, 20, id_slot=0).tokens) == 20
    assert engine.erase_slot(1).result(SECONDS) == 0
    assert not future.done()
    spins.set()
    assert future.result(SECONDS).n_tokens == 104


def test_erase(start: Start) -> None:
    engine = start("llama-dense")
    assert engine.erase_slot(1).result(SECONDS) == 0  # nothing was there
    ask(engine, PROMPT, 5, id_slot=0)
    assert engine.erase_slot(0).result(SECONDS) == 104
    assert engine.stats().n_pages_cached == 0
    assert ask(engine, PROMPT, 1).n_cached == 0


def test_a_slot_that_has_served_nobody_is_saved_empty(start: Start, tmp_path: Path) -> None:
    engine = start("llama-dense")
    assert engine.save_slot(1, tmp_path / "slot").result(SECONDS).n_tokens == 0
    assert engine.restore_slot(0, tmp_path / "slot").result(SECONDS).n_tokens == 0


def test_it_waits_for_the_slot(start: Start, tmp_path: Path) -> None:
    engine = start("llama-dense")
    reply = submit(engine, PROMPT, 60)
    saved = engine.save_slot(0, tmp_path / "slot").result(SECONDS)
    assert reply.wait().tokens
    assert saved.n_tokens == 159
    with pytest.raises(RequestError, match="no slot 2"):
        engine.save_slot(2, tmp_path / "slot")
    engine.close()
    with pytest.raises(EngineStoppedError):
        engine.erase_slot(0)
