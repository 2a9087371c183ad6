"""The launching thread keeps off the processors to which workers are pinned."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator

import pytest

from gguf_serve.kernels.opencl.affinity import apart_from_workers, processors_without_workers

if not hasattr(os, "sched_setaffinity"):
    pytest.skip("this system does not pin threads", allow_module_level=True)


@pytest.fixture
def pin(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Have a thread on each of some sets of processors, as if there were no others: a driver may
    have some in this process."""
    is_over, threads = threading.Event(), list[threading.Thread]()

    def start(*processors: set[int]) -> None:
        are_there = threading.Barrier(len(processors) + 1)

        def stay(there: set[int]) -> None:
            os.sched_setaffinity(0, there)
            are_there.wait()
            is_over.wait()

        threads.extend(threading.Thread(target=stay, args=(there,)) for there in processors)
        for thread in threads:
            thread.start()
        are_there.wait()
        monkeypatch.setattr(os, "listdir", lambda path: [str(each.native_id) for each in threads])

    processors_without_workers.cache_clear()
    yield start
    is_over.set()
    for thread in threads:
        thread.join()
    processors_without_workers.cache_clear()


def test_a_thread_keeps_off_a_workers_processor(pin: Callable[..., None]) -> None:
    all_of_them = os.sched_getaffinity(0)
    if len(all_of_them) < 2:
        pytest.skip("there is no other processor")
    worker = max(all_of_them)
    pin({worker}, all_of_them)
    with apart_from_workers():
        assert os.sched_getaffinity(0) == all_of_them - {worker}
    assert os.sched_getaffinity(0) == all_of_them


def test_processors_that_are_not_there_any_more(
    pin: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    pin(os.sched_getaffinity(0))
    refused = list[object]()

    def refuse(thread: int, processors: object) -> None:
        refused.append(processors)
        raise OSError("Invalid argument")

    monkeypatch.setattr(os, "sched_setaffinity", refuse)
    with apart_from_workers():
        pass
    assert len(refused) == 2


def test_without_room_it_stays_where_it_is(pin: Callable[..., None]) -> None:
    all_of_them = os.sched_getaffinity(0)
    pin(*({each} for each in all_of_them))
    with apart_from_workers():
        assert os.sched_getaffinity(0) == all_of_them
