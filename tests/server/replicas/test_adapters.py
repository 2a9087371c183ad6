"""LoRA adapters that a front loads are in all of its engines, or in none."""

from __future__ import annotations

import dataclasses
import logging
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from asking import GREEDY, Reply, ask, engine_of, random_prompt
from model_files import updates_of, write_adapter
from replicas_here import KEY, Replicas

from gguf_serve.engine.engine import Engine
from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.loading.loader import load_model
from gguf_serve.engine.options import AdapterRoom, EngineOptions
from gguf_serve.engine.request import Delta, Failed, Request
from gguf_serve.server.replicas.host import Host

PROMPT = random_prompt(60, 1)
PLAIN = EngineOptions(n_ctx=1024, n_parallel=2, n_ubatch=64, n_gpu_layers=0, kernel_family="simd")
SLOTS = (0, 2)  # one of each of two engines


@pytest.fixture(scope="module")
def files(dense_model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("adapters")
    return [
        write_adapter(folder / f"{name}.gguf", updates_of(dense_model, seed), 32.0)
        for seed, name in enumerate("abc", 1)
    ]


@pytest.fixture(scope="module")
def texts(dense_model: Path, files: list[Path]) -> Iterator[dict[Any, str]]:
    """What is written with each file, and with none, by an engine that has had them from the
    start."""
    start = dataclasses.replace(PLAIN, adapters=tuple((path, 0.0) for path in files))
    engine = engine_of(load_model(dense_model, start, lambda share: None))
    found = {None: text(engine, adapters=())}
    found |= {path: text(engine, adapters=((i, 1.0),)) for i, path in enumerate(files)}
    assert len(set(found.values())) == 4
    yield found
    engine.close()


@pytest.fixture(scope="module")
def loaded(dense_model: Path, files: list[Path]) -> Iterator[list[Engine]]:
    options = dataclasses.replace(
        PLAIN, adapters=((files[0], 0.0),), adapter_room=AdapterRoom(2, 8)
    )
    made = [engine_of(load_model(dense_model, options, lambda share: None)) for _ in range(3)]
    for n, engine in enumerate(made):  # which give other ids than each other from here on
        for _ in range(n):
            engine.unload_adapter(engine.load_adapter(files[2], "other").id)
    yield made
    for engine in made:
        engine.close()


@pytest.fixture
def engines(loaded: list[Engine]) -> Iterator[list[Engine]]:
    """Three with the first file from the start, and room for two more."""
    yield loaded
    for engine in loaded:
        until(lambda engine=engine: engine.stats().n_processing == 0)
        for adapter in engine.adapters()[1:]:
            with suppress(RequestError):  # a host whose front has gone may do so, too
                engine.unload_adapter(adapter.id)


@pytest.fixture
def replicas(engines: list[Engine]) -> Iterator[Replicas]:
    """Of the first two."""
    made = Replicas(engines[:2])
    yield made
    made.close()


def text(engine: Any, n: int = 12, **asked: Any) -> str:
    return ask(engine, PROMPT, n, GREEDY, **asked).text


def names(engine: Any) -> list[str]:
    return [each.name for each in engine.adapters()]


def until(condition: Any) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_every_engine_has_it_under_one_id(
    replicas: Replicas, engines: list[Engine], files: list[Path], texts: dict[Any, str]
) -> None:
    front = replicas.front
    b = front.load_adapter(files[1], "b")
    assert [(each.id, each.name, each.scale) for each in front.adapters()] == [
        (0, "a", 0.0), (b.id, "b", 0.0),
    ]  # fmt: skip
    assert engines[0].adapters()[1].id != engines[1].adapters()[1].id
    for slot in SLOTS:
        assert text(front, id_slot=slot) == texts[None]
        assert text(front, id_slot=slot, adapters=((0, 1.0),)) == texts[files[0]]
        assert text(front, id_slot=slot, adapters=((b.id, 1.0),)) == texts[files[1]]
    with pytest.raises(RequestError, match="there is no LoRA adapter 7: the ids are 0, 1"):
        text(front, adapters=((7, 1.0),))
    front.unload_adapter(b.id)
    with pytest.raises(RequestError, match=f"no LoRA adapter {b.id}"):
        text(front, adapters=((b.id, 1.0),))
    assert [names(engine) for engine in engines[:2]] == [["a"], ["a"]]
    with pytest.raises(RequestError, match="a was loaded at the start: it stays"):
        front.unload_adapter(0)


def test_one_takes_another_s_place(
    replicas: Replicas, engines: list[Engine], files: list[Path], texts: dict[Any, str]
) -> None:
    front = replicas.front
    old = front.load_adapter(files[1], "b")
    new = front.load_adapter(files[2], "b", replaces=old.id)
    assert [names(each) for each in (front, *engines[:2])] == [["a", "b"]] * 3
    for slot in SLOTS:
        assert text(front, id_slot=slot, adapters=((new.id, 1.0),)) == texts[files[2]]
    with pytest.raises(RequestError, match=f"no LoRA adapter {old.id}"):
        front.load_adapter(files[1], "b", replaces=old.id)


def test_what_one_engine_cannot_have_is_taken_back(
    replicas: Replicas, engines: list[Engine], files: list[Path], tmp_path: Path
) -> None:
    front = replicas.front
    full = [engines[1].load_adapter(path, "own").id for path in files[1:]]
    with pytest.raises(RequestError, match=r"^engine host 1: all 2 places for LoRA adapters"):
        front.load_adapter(files[1], "b")
    until(lambda: names(engines[0]) == ["a"])
    assert names(front) == ["a"]
    with pytest.raises(RequestError, match=r"^\S*none\.gguf: no such file$"):  # of both
        front.load_adapter(tmp_path / "none.gguf", "b")
    for id in full:
        engines[1].unload_adapter(id)
    assert front.load_adapter(files[1], "b").name == "b"


def test_scales_that_a_front_has_set(
    replicas: Replicas, files: list[Path], texts: dict[Any, str]
) -> None:
    front = replicas.front
    b = front.load_adapter(files[1], "b")
    front.set_adapters([(b.id, 1.0)])
    assert [each.scale for each in front.adapters()] == [0.0, 1.0]
    for slot in SLOTS:
        assert text(front, id_slot=slot) == texts[files[1]]
        assert text(front, id_slot=slot, adapters=()) == texts[None]
    with pytest.raises(RequestError, match="there is no LoRA adapter 9"):
        front.set_adapters([(9, 1.0)])
    front.unload_adapter(b.id)
    assert text(front) == texts[None]


def test_an_engine_that_comes_later_has_it_too(
    replicas: Replicas, engines: list[Engine], files: list[Path], texts: dict[Any, str]
) -> None:
    """And takes over what the others were writing with it."""
    front = replicas.front
    b = front.load_adapter(files[1], "b")
    reply, goes_on = Reply(), replicas.brake(9)
    request = Request(tuple(PROMPT), GREEDY, 300, adapters=((b.id, 1.0),))
    front.submit(request, reply)
    until(lambda: len(reply.all(Delta)) > 5)
    for name in list(replicas.hosts):
        replicas.kill(name)
    goes_on.set()
    replicas.hosts["host 2"] = Host(engines[2], ("127.0.0.1", 0), KEY)
    replicas.know()
    assert reply.wait().text[:12] == texts[files[1]]
    assert names(engines[2]) == ["a", "b"]
    assert front.n_moved >= 1
    alone = ask(engines[2], PROMPT, 300, GREEDY, adapters=((engines[2].adapters()[1].id, 1.0),))
    assert reply.text == alone.text


def test_an_engine_without_it_serves_the_rest(
    replicas: Replicas,
    engines: list[Engine],
    files: list[Path],
    texts: dict[Any, str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It has come when the file was another one; what asks for it is with those that have it."""
    front = replicas.front
    path = tmp_path / "b.gguf"
    shutil.copy(files[1], path)
    b = front.load_adapter(path, "b")
    shutil.copy(files[2], path)
    with caplog.at_level(logging.ERROR):
        replicas.hosts["host 2"] = Host(engines[2], ("127.0.0.1", 0), KEY)
        replicas.know()
        replicas.wait_for(3)
    assert "engine host 2 is without the LoRA adapter b" in caplog.text
    assert "is not the file any more" in caplog.text
    until(lambda: names(engines[2]) == ["a"])
    assert text(front, id_slot=4) == texts[None]
    for _ in range(4):
        assert text(front, adapters=((b.id, 1.0),)) == texts[files[1]]
    waiting = Reply()
    front.submit(Request(tuple(PROMPT), GREEDY, 3, adapters=((b.id, 1.0),), id_slot=4), waiting)
    time.sleep(0.1)
    assert not waiting.events


def test_adapters_go_with_their_front(
    replicas: Replicas, engines: list[Engine], files: list[Path]
) -> None:
    """Another one sees nothing of them."""
    replicas.front.load_adapter(files[1], "b")
    other = replicas.new_front(engines[0])
    assert names(other) == ["a"]
    other.load_adapter(files[2], "b")
    assert names(engines[0]) == ["a", "b", "b"]
    other.close()
    until(lambda: [names(engine) for engine in engines[:2]] == [["a", "b"]] * 2)
    assert engines[0].adapters()[1].path == files[1]


def test_a_moved_request_whose_adapter_has_gone_fails(
    engines: list[Engine], files: list[Path]
) -> None:
    replicas = Replicas(engines[:1])
    front = replicas.front
    b = front.load_adapter(files[1], "b")
    reply = Reply()
    front.submit(Request(tuple(PROMPT), GREEDY, 900, adapters=((b.id, 1.0),)), reply)
    until(lambda: reply.all(Delta))
    front.unload_adapter(b.id)
    replicas.kill("host 0")
    end = reply.wait().events[-1]
    assert end == Failed(f"there is no LoRA adapter {b.id}: the ids are 0", by_request=True)
    replicas.close()
