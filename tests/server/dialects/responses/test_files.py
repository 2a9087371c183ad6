"""Responses that outlive the server."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import Any

import openai
import pytest

from gguf_serve.server.dialects.responses.files import ResponseFiles
from gguf_serve.server.dialects.responses.memory import Kept, Memory, with_ids
from gguf_serve.server.errors import ApiError
from gguf_serve.server.http.client import client as asking


def name(n: int, kind: str = "resp") -> str:
    return f"{kind}_{n:032}"


def kept(n: int, text: str = "hi", **fields: Any) -> Kept:
    output = [{"id": f"out{n}", "type": "message"}]
    return Kept(name(n), with_ids(text), {"id": name(n), "output": output}, **fields)


def again(files: ResponseFiles, n_bytes: int = 10**6) -> Memory:
    """The memory of a server that starts after the other."""
    files.wait()
    return Memory(n_bytes, ResponseFiles(files.folder))


@pytest.fixture
def files(tmp_path: Path) -> ResponseFiles:
    return ResponseFiles(tmp_path / "responses")


def test_another_server_goes_on_from_it(files: ResponseFiles) -> None:
    memory = Memory(10**6, files)
    memory.keep(kept(1, "one"))
    conversation = Kept(name(2, "conv"), with_ids("two"), metadata={"a": "b"}, owner="me")
    memory.keep(conversation)
    later = again(files)
    assert later.find("id", name(1)).history[0]["content"][0]["text"] == "one"
    assert later.item("out1") == {"id": "out1", "type": "message"}
    with pytest.raises(ApiError):  # another client's
        later.find("id", name(2, "conv"), is_response=False)
    asking.set("me")
    found = later.find("id", name(2, "conv"), is_response=False)
    asking.set("")
    assert (found.items, found.metadata) == (conversation.items, {"a": "b"})
    modes = {stat.S_IMODE(os.stat(path).st_mode) for path in files.folder.iterdir()}
    assert (modes, stat.S_IMODE(files.folder.stat().st_mode)) == ({0o600}, 0o700)


def test_what_is_damaged_is_deleted(files: ResponseFiles) -> None:
    memory = Memory(10**6, files)
    for n in range(4):
        memory.keep(kept(n))
    files.wait()
    paths = [files.folder / name(n) for n in range(4)]
    paths[0].write_bytes(paths[0].read_bytes()[:-9])
    paths[1].write_bytes(bytes(paths[1].stat().st_size))
    paths[2].write_bytes(b"[]")
    left, begun = (files.folder / (name(i) + ".part") for i in (5, 6))
    for part in (left, begun):
        part.write_bytes(b"{")
    os.utime(left, (1, 1))
    later = again(files)
    assert later.find("id", name(3))
    for n in range(3):
        with pytest.raises(ApiError):
            later.find("id", name(n))
    assert {path.name for path in files.folder.iterdir()} == {name(3), begun.name}


def test_the_oldest_go_and_so_do_their_files(files: ResponseFiles) -> None:
    memory = Memory(3000, files)
    for n in range(8):
        memory.keep(kept(n, "x" * 500))
        files.wait()
        os.utime(files.folder / name(n), ns=(n, n))
    left = sorted(path.name for path in files.folder.iterdir())
    assert name(7) in left
    assert name(0) not in left
    memory.find("id", left[0])  # now the last one that somebody has asked for
    files.wait()
    fewer = again(files, 1000)
    assert fewer.find("id", left[0])
    with pytest.raises(ApiError):
        fewer.find("id", left[1])


def test_a_name_leads_nowhere_else(files: ResponseFiles) -> None:
    files.folder.mkdir()
    (files.folder.parent / "resp_secret").write_text("{}")
    for wrong in ("../resp_secret", "resp_../resp_secret", "resp_" + "a" * 31 + "/"):
        assert files.read(wrong) is None


def test_over_http(serve: Any, client: Any, fakes: Any, files: ResponseFiles) -> None:
    """With a folder that another server has filled, and items that are referred to."""
    engine = fakes.engine()
    api: openai.OpenAI = client(serve(engine, response_folder=files.folder))
    first = api.responses.create(model="m", input="the first turn")
    assert api.responses.retrieve(first.id).output_text == "Hello wörld"
    until = time.monotonic() + 30
    while not (files.folder / first.id).exists():  # it is written aside
        assert time.monotonic() < until
        time.sleep(0.01)
    other = fakes.engine()
    api = client(serve(other, response_folder=files.folder))
    second = api.responses.create(model="m", input="again", previous_response_id=first.id)
    assert "the first turn" in other.tokenizer.decode(other.requests[-1].prompt)
    [asked] = api.responses.input_items.list(first.id).data
    given: Any = [
        {"type": "item_reference", "id": asked.id},
        {"type": "item_reference", "id": second.output[0].id},
        {"role": "user", "content": "and now?"},
    ]
    api.responses.create(model="m", input=given)
    prompt = other.tokenizer.decode(other.requests[-1].prompt)
    assert "the first turn" in prompt
    assert "Hello wörld" in prompt.partition("assistant: ")[2]
    api.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(first.id)
