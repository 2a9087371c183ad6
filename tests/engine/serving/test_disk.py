"""The cache on disk under an engine: what is kept, who finds it, and what goes wrong.

Most tests share an engine and have prompts of their own; ``forget`` empties its memory, as a
restart does.
"""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest
from asking import (
    GREEDY,
    N_PAGES,
    N_TOKENS,
    SECONDS,
    Reply,
    Start,
    ask,
    assert_same_logits,
    disk,
    forget,
    kept,
    random_prompt,
    scores,
    submit,
    wait_for,
)

from gguf_serve.engine.disk_cache.folder import Folder
from gguf_serve.engine.engine import Engine
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.request import Request, Started


def test_a_hit_is_bit_by_bit_as_in_memory(engine: Engine) -> None:
    prompt = [*random_prompt(N_TOKENS, 1)[:320], *random_prompt(20, 2)]
    n = disk(engine).n_written
    ask(engine, [*prompt[:320], 127 - prompt[320]], 1)
    in_memory = ask(engine, prompt, 8, n_probs=128)
    wait_for(engine, n + N_PAGES)
    forget(engine)
    before = disk(engine)
    reply = ask(engine, prompt, 8, n_probs=128)
    assert (reply.n_cached, in_memory.n_cached) == (320, 320)
    assert (reply.tokens, scores(reply)) == (in_memory.tokens, scores(in_memory))
    assert disk(engine).n_hit_tokens == before.n_hit_tokens + 320
    assert disk(engine).load_seconds > before.load_seconds


def test_what_another_server_has_written(engine: Engine, start: Start) -> None:
    """Before this one has started, or while both run. Another model finds nothing of it."""
    prompt = kept(engine, 3)
    expected = ask(engine, prompt, 8).tokens
    other = start()
    reply = ask(other, prompt, 8)
    assert (reply.n_cached, reply.tokens) == (320, expected)
    prompt = random_prompt(N_TOKENS, 4)
    expected = ask(other, prompt, 8).tokens
    assert other.wait_until_kept(SECONDS)
    reply = ask(engine, prompt, 8)
    assert (reply.n_cached, reply.tokens) == (320, expected)
    assert ask(start("qwen2-dense"), prompt, 1).n_cached == 0


def test_a_wake_is_warm(start: Start) -> None:
    """The model has left memory, and comes back."""
    asleep, prompt = start(), random_prompt(N_TOKENS, 25)
    expected = ask(asleep, prompt, 8).tokens
    assert asleep.wait_until_kept(SECONDS)
    asleep.release()
    assert disk(asleep).n_written == N_PAGES
    reply = ask(start(), prompt, 8)
    assert (reply.n_cached, reply.tokens) == (320, expected)


def test_a_salt_keeps_pages_to_those_who_know_it(engine: Engine) -> None:
    """In memory and on disk; it decides nothing else."""
    prompt, n = random_prompt(N_TOKENS, 23), disk(engine).n_written
    expected = ask(engine, prompt, 8, cache_salt="ours").tokens
    wait_for(engine, n + N_PAGES)
    assert ask(engine, prompt, 1).n_cached == 0
    wait_for(engine, n + 2 * N_PAGES)
    forget(engine)
    assert ask(engine, prompt, 1, cache_salt="theirs").n_cached == 0
    reply = ask(engine, prompt, 8, cache_salt="ours")
    assert (reply.n_cached, reply.tokens) == (320, expected)
    with pytest.raises(RequestError, match="a cache_salt or an encoder's prompt, which"):
        engine.save_slot(reply.all(Started)[0].id_slot, Path("unused")).result(SECONDS)


def test_generated_tokens_are_kept_too(engine: Engine) -> None:
    prompt, n = random_prompt(N_TOKENS, 5), disk(engine).n_written
    answer = ask(engine, prompt, 60).tokens
    wait_for(engine, n + (N_TOKENS + 59) // 32)
    forget(engine)
    assert ask(engine, [*prompt, *answer, *random_prompt(10, 2)], 1).n_cached == 384


def test_waiting_until_all_is_written(engine: Engine) -> None:
    n = disk(engine).n_written
    ask(engine, random_prompt(N_TOKENS, 24), 1)
    assert engine.wait_until_kept(SECONDS)
    assert disk(engine).n_written == n + N_PAGES


def test_nothing_is_written_twice_and_nothing_short(engine: Engine) -> None:
    prompt, n = random_prompt(N_TOKENS, 6), disk(engine).n_written
    ask(engine, prompt, 1)
    ask(engine, prompt, 40)
    ask(engine, random_prompt(60, 7), 1)
    wait_for(engine, n + N_PAGES + 1)


def test_without_cache_prompt_nothing_is_kept_or_used(engine: Engine) -> None:
    prompt, n = random_prompt(N_TOKENS, 8), disk(engine).n_written
    ask(engine, prompt, 1, cache_prompt=False)
    other = kept(engine, 9)
    assert disk(engine).n_written == n + N_PAGES
    assert ask(engine, other, 1, cache_prompt=False).n_cached == 0


def test_only_what_is_not_in_memory_is_loaded(engine: Engine) -> None:
    prompt = kept(engine, 10)
    n = disk(engine).n_hit_tokens
    ask(engine, prompt[:100], 1)
    assert ask(engine, prompt, 1).n_cached == 320
    assert disk(engine).n_hit_tokens == n + 320 - 100
    assert ask(engine, prompt, 1).n_cached == 329
    assert disk(engine).n_hit_tokens == n + 320 - 100


def test_damage_costs_no_more_than_what_follows_it(engine: Engine, folder: Path) -> None:
    prompt = random_prompt(N_TOKENS, 11)
    expected = ask(engine, prompt, 8, cache_prompt=False).tokens
    assert kept(engine, 11) == prompt
    files = sorted(folder.glob("*.kv"), key=lambda path: -path.stat().st_mtime_ns)
    raw = files[4].read_bytes()
    files[4].write_bytes(raw[:-30] + bytes([raw[-30] ^ 1]) + raw[-29:])
    before = disk(engine)
    reply = ask(engine, prompt, 8)
    assert (reply.n_cached, reply.tokens) == (128, expected)
    assert disk(engine).n_corrupt == before.n_corrupt + 1
    wait_for(engine, before.n_written + 1)
    forget(engine)
    assert ask(engine, prompt, 1).n_cached == 320  # it has been written again


def test_a_folder_that_takes_nothing(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is there is used, and nobody fails."""
    prompt = kept(engine, 12)

    def refuse(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Folder, "_place", refuse)
    n = disk(engine).n_written
    assert ask(engine, prompt, 1).n_cached == 320
    assert ask(engine, random_prompt(N_TOKENS, 13), 1).end.reason == "limit"
    assert ask(engine, random_prompt(N_TOKENS, 14), 1).end.reason == "limit"
    assert not engine.wait_until_kept(SECONDS)
    assert disk(engine).n_written == n
    assert engine._disk is not None
    engine._disk._store._rests_until, engine._disk._saves.has_failed = 0.0, False


def test_others_go_on_while_one_is_loaded(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also who finds nothing on the disk; and one that is cancelled meanwhile ends."""
    prompt, spins, reached = kept(engine, 15), threading.Event(), threading.Event()
    read = Folder.read

    def slow(*arguments: object) -> object:
        reached.set()
        assert spins.wait(SECONDS)
        return read(*arguments)

    monkeypatch.setattr(Folder, "read", slow)
    loaded, cancelled = submit(engine, prompt, 4), Reply()
    assert reached.wait(SECONDS)
    ticket = engine.submit(Request(tuple(prompt), GREEDY, 4), cancelled)
    assert len(ask(engine, random_prompt(200, 16), 5).tokens) == 5
    engine.cancel(ticket)
    assert cancelled.wait().end.reason == "cancelled"
    assert not loaded.events
    spins.set()
    assert loaded.wait().n_cached == 320


def test_a_prompt_for_which_there_is_no_room(engine: Engine) -> None:
    """It is computed when others have ended, like any other."""
    prompt = kept(engine, 17)
    cache = engine._scheduler.cache
    held = [cache._take() for _ in range(cache.n_available - 20)]
    long = submit(engine, random_prompt(300, 18), 100)
    assert len(ask(engine, prompt, 4).tokens) == 4
    assert long.wait().end.reason == "limit"
    for page in held:
        cache._unreference(page)


def test_what_is_computed_sooner_is_not_loaded(
    engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ask(engine, kept(engine, 28), 1).n_cached == 320  # so how long it takes is known
    prompt = kept(engine, 19)
    assert engine._disk is not None
    monkeypatch.setattr(engine._disk._loads, "_speed", lambda: 1e9)
    n = disk(engine).n_hit_tokens
    assert ask(engine, prompt, 1).n_cached == 0
    assert disk(engine).n_hit_tokens == n


def test_damaged_values_leave_the_disk_too(engine: Engine, folder: Path) -> None:
    prompt = kept(engine, 20)
    n = len(list(folder.glob("*.kv")))
    ask(engine, prompt, 1, id_slot=0)
    stream = engine._slots._latest[0]
    assert stream is not None
    engine._between_steps(lambda: engine._loop.forget(stream.seq)).result(SECONDS)
    end = time.monotonic() + SECONDS
    while len(list(folder.glob("*.kv"))) > n - N_PAGES:
        assert time.monotonic() < end
        time.sleep(0.01)


def test_an_end_while_something_is_loaded(
    engine: Engine, start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt, spins, reached = kept(engine, 21), threading.Event(), threading.Event()

    def slow(*_: object) -> None:
        reached.set()
        assert spins.wait(SECONDS)

    other = start()
    end = time.monotonic() + SECONDS
    while not disk(other).n_files:  # its thread has looked at the folder
        assert time.monotonic() < end
        time.sleep(0.01)
    monkeypatch.setattr(Folder, "read", slow)
    monkeypatch.setattr("gguf_serve.engine.serving.disk.CLOSE_SECONDS", 0.1)
    reply = submit(other, prompt, 4)
    assert reached.wait(SECONDS)
    other.close()
    assert reply.wait().end.reason == "cancelled"
    spins.set()
    other.release()
    assert disk(other).n_files > 0


STATES = ("falcon-h1-dense", "gemma3-dense", "mamba2-dense", "lfm2-dense")
LARGE = ("qwen35-dense", "deepseek4-moe", "rwkv7", "gemma4-26b-a4b")  # take 5 to 15 s each


@pytest.mark.parametrize(
    "name", [*STATES, *(pytest.param(name, marks=pytest.mark.slow) for name in LARGE)]
)
def test_models_with_a_state_or_a_window(start: Start, name: str) -> None:
    """What a slot keeps beside pages is there with its last full page before the end."""
    engine, prompt = start(name, checkpoint_min_step=1 << 20), random_prompt(N_TOKENS, 22)
    other = [*prompt[:-1], 127 - prompt[-1]]
    ask(engine, prompt, 1)
    wait_for(engine, 10)  # nine pages and the checkpoint
    in_memory = ask(engine, other, 8, n_probs=128)
    forget(engine, prompt, other)
    from_disk = ask(engine, other, 8, n_probs=128)
    assert (from_disk.n_cached, in_memory.n_cached) == (288, 288)
    assert (from_disk.tokens, scores(from_disk)) == (in_memory.tokens, scores(in_memory))
    assert_same_logits(from_disk, ask(engine, other, 8, n_probs=128, cache_prompt=False))
