"""Processes that can be ended: what goes wrong in one is told to who asked, and to nobody else."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from gguf_serve.engine import child
from gguf_serve.engine.child import ChildError, Limits, Pool

LIMITS = Limits(seconds=1.0, memory=64 << 20)


@pytest.fixture(scope="module")
def pool() -> Iterator[Pool]:
    """Of children that evaluate what they are asked (child_process.py)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(os.path.dirname(__file__))
        patch.setattr(child, "CLOCK", 100)  # the processor's time is what ends them
        patch.setattr(child, "SETUP_CLOCK", 100)
        made = Pool("child_process", {"a": 1}, most=2, limits=LIMITS)
        yield made
        made.close()


def test_setup_and_messages(pool: Pool) -> None:
    assert pool.first_answer() == b"set up with {'a': 1}"
    assert pool.ask("len(x)") == b"1"
    assert pool.ask("'y' * 3_000_000") == b"y" * 3_000_000
    assert len(pool.ask(" " * 3_000_000 + "x")) == len("{'a': 1}")


@pytest.mark.parametrize(
    ("message", "why", "told"),
    [
        ("sum(iter(int, 1))", "time", "more than 1 seconds"),
        ("[0] * 10**12", "memory", "more than 64 MiB"),
        ("'x' * (80 << 20)", "memory", "more than 64 MiB"),
        ("os._exit(3)", "ended", "code 3"),
        ("os.kill(os.getpid(), 9)", "ended", "code -9"),
    ],
)
def test_what_ends_a_child_is_said_and_the_next_message_is_answered(
    pool: Pool, message: str, why: str, told: str
) -> None:
    with pytest.raises(ChildError, match=told) as caught:
        pool.ask(message)
    assert caught.value.why == why
    assert pool.ask("1 + 1") == b"2"


def test_the_parents_clock_ends_a_child_that_waits(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(child, "CLOCK", 0.3)
    with pytest.raises(ChildError, match="more than 1 seconds"):
        pool.ask("time.sleep(60)")


class Endless:
    """What takes a minute to be read."""

    def __reduce__(self) -> tuple[Callable[[float], None], tuple[float]]:
        return time.sleep, (60.0,)


def test_a_setup_has_longer(monkeypatch: pytest.MonkeyPatch) -> None:
    """It begins with the start of a process, which takes long where much else runs."""
    monkeypatch.syspath_prepend(os.path.dirname(__file__))
    monkeypatch.setattr(child, "CLOCK", 0)
    monkeypatch.setattr(child, "SETUP_CLOCK", 100)
    pool = Pool("child_process", {"a": 1}, most=1, limits=LIMITS)
    assert pool.first_answer() == b"set up with {'a': 1}"
    monkeypatch.setattr(child, "SETUP_CLOCK", 0.1)
    with pytest.raises(ChildError, match="more than 1 seconds"):
        Pool("child_process", Endless(), most=1, limits=LIMITS).first_answer()
    pool.close()


def test_another_child_answers_while_one_is_busy(pool: Pool, tmp_path: Path) -> None:
    os.mkfifo(pipe := tmp_path / "pipe")
    with ThreadPoolExecutor(1) as other:
        busy = other.submit(pool.ask, f"open({str(pipe)!r}).read()")
        with pipe.open("w") as to_child:  # which is in the middle of its message then
            assert pool.ask("2") == b"2"
            assert not busy.done()
            to_child.write("end")
        assert busy.result() == b"end"


def test_a_child_that_was_ended_while_idle_is_replaced(pool: Pool) -> None:
    pid = int(pool.ask("os.getpid()"))
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert int(pool.ask("os.getpid()")) != pid


def test_whoever_waits_hears_of_the_end(pool: Pool) -> None:
    """The process that ends must not wait for a child that does not."""
    errors: list[ChildError] = []

    def wait() -> None:
        try:
            pool.ask("time.sleep(60)")
        except ChildError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    while not pool._busy:
        time.sleep(0.01)
    child.end_all()
    thread.join(60)
    assert [error.why for error in errors] == ["ended"]
    assert pool.ask("1") == b"1"


def test_children_know_nothing_of_the_environment(
    pool: Pool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LLAMA_API_KEY", "secret")
    made = Pool("child_process", {}, most=1, limits=LIMITS)
    assert made.ask("os.environ.get('LLAMA_API_KEY')") == b"None"
    made.close()


def test_a_message_that_is_nested_too_deeply(pool: Pool) -> None:
    nested: list[object] = []
    for _ in range(100_000):
        nested = [nested]
    with pytest.raises(RecursionError):
        pool.ask(nested)
