"""Children that wait to be asked for something."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from msgspec.structs import replace

from gguf_serve.kernels.opencl.compiling import worker as workers
from gguf_serve.kernels.opencl.compiling.worker import (
    begin_workers,
    end_spare_workers,
    keep_worker,
    take_worker,
)
from gguf_serve.kernels.opencl.platforms import DeviceInfo

INFO = DeviceInfo(0, "CPU", "platform", "driver", "cpu", 1 << 30, 2)
OTHER = replace(INFO, name="another")


class FakeWorker:
    made: list[FakeWorker]

    def __init__(self, *, background: bool = False) -> None:
        self.background, self.alive = background, True
        self.device: DeviceInfo | None = None
        self.made.append(self)

    def choose(self, info: DeviceInfo) -> None:
        self.device = info

    def close(self) -> None:
        self.alive = False


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[FakeWorker]]:
    FakeWorker.made = []
    monkeypatch.setattr(workers, "Worker", FakeWorker)
    yield FakeWorker.made
    end_spare_workers()


def test_what_has_been_begun_is_taken(made: list[FakeWorker]) -> None:
    begin_workers(2)
    taken = [take_worker(INFO) for _ in range(3)]
    assert taken == made
    assert [worker.device for worker in made] == [INFO] * 3


def test_a_child_keeps_its_device(made: list[FakeWorker]) -> None:
    first = take_worker(INFO)
    keep_worker(first)
    assert take_worker(OTHER) is not first
    assert take_worker(INFO) is first


def test_one_that_has_ended_is_not_taken(made: list[FakeWorker]) -> None:
    begin_workers(2)
    made[0].alive = False
    assert [take_worker(INFO), take_worker(INFO)] == made[1:]


def test_in_the_background_is_another(made: list[FakeWorker]) -> None:
    begin_workers(1)
    assert take_worker(INFO, background=True) is made[1]
    assert made[1].background
    end_spare_workers()
    assert [worker.alive for worker in made] == [False, True]


def test_nobody_comes_for_one(made: list[FakeWorker], monkeypatch: pytest.MonkeyPatch) -> None:
    begin_workers(1)
    workers._spare._end(made[0])  # what its timer does
    assert not made[0].alive
    assert take_worker(INFO) is made[1]
    workers._spare._end(made[1])  # it is in use
    assert made[1].alive
