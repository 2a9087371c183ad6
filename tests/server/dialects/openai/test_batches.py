"""Files and batches as OpenAI's own client sees them, over HTTP."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from gguf_serve.engine.request import Delta, Embedded, Event, Finished, Request, Started, Timings
from gguf_serve.server.batches.lines import answer
from gguf_serve.server.batches.objects import Batch, now
from gguf_serve.server.batches.store import Store, StoreError

CHAT = "/v1/chat/completions"
Client = Callable[..., openai.OpenAI]


def line(name: str, text: str = "hi", url: str = CHAT, **body: Any) -> dict[str, Any]:
    asked = {"messages": [{"role": "user", "content": text}], "max_tokens": 5}
    given = asked | body if url == CHAT else body
    return {"custom_id": name, "method": "POST", "url": url, "body": given}


def jsonl(lines: list[Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def submit(client: openai.OpenAI, lines: list[Any], endpoint: Any = CHAT, **more: Any) -> Any:
    file = client.files.create(file=("in.jsonl", jsonl(lines)), purpose="batch")
    return client.batches.create(
        input_file_id=file.id, endpoint=endpoint, completion_window="24h", **more
    )


def ended(client: openai.OpenAI, batch: Any, seconds: float = 60.0) -> Any:
    until = time.monotonic() + seconds
    while batch.status in ("validating", "in_progress", "finalizing", "cancelling"):
        assert time.monotonic() < until, batch
        time.sleep(0.02)
        batch = client.batches.retrieve(batch.id)
    return batch


def read(client: openai.OpenAI, id: str | None) -> dict[str, Any]:
    """The lines of a file by their custom_id, of which none comes twice."""
    assert id is not None
    lines = [json.loads(one) for one in client.files.content(id).text.splitlines()]
    found = {one["custom_id"]: one for one in lines}
    assert len(found) == len(lines)
    return found


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "batches", 2**20)


def test_a_batch_from_its_file_to_its_answers(
    serve: Any, client: Client, fakes: Any, store: Store
) -> None:
    asking = client(serve(fakes.engine(fakes.say("Hello")), batch_store=store))
    lines = [line(f"n{i}") for i in range(20)]
    lines += [line("wrong", temperature="hot"), line("streams", stream=True)]
    batch = submit(asking, lines, metadata={"what": "a test"})
    assert (batch.object, batch.endpoint, batch.completion_window) == ("batch", CHAT, "24h")
    assert batch.expires_at == batch.created_at + 86400
    batch = ended(asking, batch)
    assert batch.status == "completed"
    assert batch.metadata == {"what": "a test"}
    counts = batch.request_counts
    assert (counts.total, counts.completed, counts.failed) == (22, 20, 2)
    assert batch.usage.total_tokens == batch.usage.input_tokens + 100
    answers = read(asking, batch.output_file_id)
    assert answers.keys() == {f"n{i}" for i in range(20)}
    one = answers["n7"]
    assert list(one) == ["id", "custom_id", "response", "error"]
    assert one["id"].startswith("batch_req_")
    assert one["error"] is None
    assert one["response"]["status_code"] == 200
    assert one["response"]["body"]["choices"][0]["message"]["content"] == "Hello"
    failed = read(asking, batch.error_file_id)
    for name, field in (("wrong", "temperature"), ("streams", "stream")):
        response = failed[name]["response"]
        assert response["status_code"] == 400
        assert f"'{field}'" in response["body"]["error"]["message"]
    output = asking.files.retrieve(batch.output_file_id)
    assert (output.purpose, output.filename) == ("batch_output", f"{batch.id}_output.jsonl")


@pytest.mark.parametrize(
    ("url", "body", "kind"),
    [
        ("/v1/completions", {"prompt": "a"}, "text_completion"),
        ("/v1/responses", {"input": "a"}, "response"),
        ("/v1/embeddings", {"input": "a"}, "list"),
    ],
)
def test_the_other_endpoints(
    serve: Any, client: Client, fakes: Any, store: Store, url: str, body: Any, kind: str
) -> None:
    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        yield Started(len(request.prompt), 0, 0)
        yield Delta("ok", (1,)) if request.has_text else Embedded(((1.0, 2.0),))
        yield Finished("eos", Timings(predicted_n=1))

    asking = client(serve(fakes.engine(script), batch_store=store))
    batch = ended(asking, submit(asking, [line("one", url=url, **body)], endpoint=url))
    response = read(asking, batch.output_file_id)["one"]["response"]
    assert (response["status_code"], response["body"]["object"]) == (200, kind)


def test_files(serve: Any, client: Client, fakes: Any, store: Store) -> None:
    url = serve(fakes.engine(), batch_store=store)
    asking = client(url)
    given = [jsonl([line(f"of {i}")]) for i in range(3)]
    made = [
        asking.files.create(file=(f"{i}.jsonl", d), purpose="batch") for i, d in enumerate(given)
    ]
    assert [file.id for file in asking.files.list(order="asc")] == [file.id for file in made]
    assert [file.id for file in asking.files.list(limit=1)] == [f.id for f in reversed(made)]
    file = made[1]
    assert (file.bytes, file.filename, file.purpose) == (len(given[1]), "1.jsonl", "batch")
    assert asking.files.content(file.id).content == given[1]
    assert {stat.S_IMODE(os.stat(path).st_mode) for path in store.path.iterdir()} == {0o600}
    assert asking.files.delete(file.id).deleted
    with pytest.raises(openai.NotFoundError):
        asking.files.retrieve(file.id)
    assert not store.place(file.id).exists()
    for data, field in (({"purpose": "fine-tune"}, "purpose"), ({}, "purpose")):
        refused = httpx.post(f"{url}/v1/files", data=data, files={"file": b"{}"})
        assert refused.status_code == 400
        assert f"'{field}'" in refused.json()["error"]["message"]
    too_soon = {"purpose": "batch", "expires_after[seconds]": "60"}
    assert httpx.post(f"{url}/v1/files", data=too_soon, files={"file": b"{}"}).status_code == 400
    large = httpx.post(f"{url}/v1/files", data={"purpose": "batch"}, files={"file": b"x" * 2**20})
    assert large.status_code == 413
    assert "--batch-storage" in large.json()["error"]["message"]


def test_nobody_sees_the_files_and_batches_of_others(
    serve: Any, client: Client, fakes: Any, store: Store
) -> None:
    url = serve(fakes.engine(), batch_store=store, api_keys=("one", "other"))
    mine, other = client(url, "one"), client(url, "other")
    batch = submit(mine, [line("a")])
    assert list(other.files.list()) == list(other.batches.list()) == []
    with pytest.raises(openai.NotFoundError):
        other.batches.retrieve(batch.id)
    with pytest.raises(openai.NotFoundError):
        other.files.content(batch.input_file_id)
    with pytest.raises(openai.BadRequestError, match="input_file_id"):
        other.batches.create(
            input_file_id=batch.input_file_id, endpoint=CHAT, completion_window="24h"
        )
    assert [one.id for one in mine.batches.list()] == [batch.id]


def test_what_is_wrong_with_a_file_is_told_by_its_line(
    serve: Any, client: Client, fakes: Any, store: Store
) -> None:
    asking = client(serve(fakes.engine(), batch_store=store))
    wrong = [line("a"), line("a"), line("b", url="/v1/other"), {"custom_id": "c"}]
    batch = ended(asking, submit(asking, wrong))
    assert batch.status == "failed"
    assert batch.failed_at is not None
    assert batch.output_file_id is None
    assert [(one.code, one.line) for one in batch.errors.data] == [
        ("duplicate_custom_id", 2), ("mismatched_url", 3), ("invalid_request", 4),
    ]  # fmt: skip


def test_cancelling(serve: Any, client: Client, fakes: Any, store: Store) -> None:
    engine = fakes.engine(fakes.say("x" * 500, pause=0.1), n_slots=2)
    asking = client(serve(engine, batch_store=store))
    batch = submit(asking, [line(f"{i}", max_tokens=500) for i in range(50)])
    while engine.n_running < 2:
        time.sleep(0.01)
    with pytest.raises(openai.BadRequestError, match="has not ended"):
        asking.files.delete(batch.input_file_id)
    assert asking.batches.cancel(batch.id).status in ("cancelling", "cancelled")
    batch = ended(asking, asking.batches.retrieve(batch.id))
    assert (batch.status, batch.request_counts.completed) == ("cancelled", 0)
    while engine.n_running:
        time.sleep(0.01)
    with pytest.raises(openai.BadRequestError, match="cancelled"):
        asking.batches.cancel(batch.id)


def test_a_batch_gives_way_to_who_waits(
    serve: Any, client: Client, fakes: Any, store: Store
) -> None:
    """While somebody's answer is written nothing of a batch is in the engine; then it goes on
    after what it has, with the same seed."""
    said, begun = fakes.say("abcdefgh"), threading.Event()

    def half(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        for event in said(request, cancelled):
            yield event
            if isinstance(event, Delta) and event.text == "d":
                begun.set()
                cancelled.wait(20)

    scripts = iter([half, fakes.say("chat", pause=0.05), fakes.say("the rest")])
    engine = fakes.engine(lambda request, cancelled: next(scripts)(request, cancelled))
    asking = client(serve(engine, batch_store=store))
    batch = submit(asking, [line("n", max_tokens=100)])
    assert begun.wait(20)
    stream = asking.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "now"}], stream=True
    )
    next(iter(stream))
    assert [number for number, _ in engine.cancelled] == [0]
    assert "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)
    batch = ended(asking, batch)
    first, chat, rest = engine.requests
    assert (chat.priority, chat.resume) == (0, None)
    assert rest.priority > 0
    assert rest.resume is not None
    assert bytes(rest.resume.tokens) == b"abcd"
    assert first.sampling.seed == rest.sampling.seed >= 0
    body = read(asking, batch.output_file_id)["n"]["response"]["body"]
    assert body["choices"][0]["message"]["content"] == "abcdthe rest"


def test_a_window_that_is_over(serve: Any, client: Client, fakes: Any, store: Store) -> None:
    """One whose time was over before the server started again: what it has is kept."""
    asking = client(serve(fakes.engine(fakes.say("x" * 500, pause=0.02)), batch_store=store))
    late = Batch(
        endpoint=CHAT, input_file_id="file-late", model="m", owner="127.0.0.1", expires_at=now()
    )  # fmt: skip
    store.place("file-late").write_bytes(jsonl([line("done"), line("left")]))
    store.place(late.output).write_bytes(answer("done", 200, b"{}"))
    store.add_batch(late)
    ended(asking, submit(asking, [line("other", max_tokens=1)]))
    batch = ended(asking, asking.batches.retrieve(late.id))
    assert (batch.status, batch.request_counts.completed) == ("expired", 1)
    assert batch.expired_at is not None
    assert read(asking, batch.output_file_id).keys() == {"done"}
    [left] = read(asking, batch.error_file_id).values()
    assert (left["response"], left["error"]["code"]) == (None, "batch_expired")


def test_after_a_kill(serve: Any, client: Client, fakes: Any, store: Store, tmp_path: Path) -> None:
    """A copy of the folder in the middle of a batch is what a kill leaves; so is half a line."""
    said, numbers = fakes.say("slow"), itertools.count()

    def script(request: Request, cancelled: threading.Event) -> Iterator[Event]:
        if next(numbers) >= 10:  # nothing is written while the folder is copied
            cancelled.wait(60)
        yield from said(request, cancelled)

    engine = fakes.engine(script)
    asking = client(serve(engine, batch_store=store))
    batch = submit(asking, [line(f"{i}") for i in range(60)] + [line("bad", temperature=[])])
    until = time.monotonic() + 60
    while len(engine.requests) < 10 + engine.n_slots:
        assert time.monotonic() < until
        time.sleep(0.01)
    left = tmp_path / "left"
    shutil.copytree(store.path, left)
    [kept] = store.batches.values()
    with (left / kept.output).open("rb+") as file:
        before = file.read()
        whole = before[: before.rindex(b"\n") + 1]
        file.write(b'{"id":"batch_req_1","custom_id":"half')
    (left / "file-upload").write_bytes(b"of a file that nobody has been told of")
    again = Store(left, 2**20)
    assert not (left / "file-upload").exists()
    asking = client(serve(fakes.engine(fakes.say("slow")), batch_store=again))
    ended(asking, submit(asking, [line("starts the others")]))
    batch = ended(asking, asking.batches.retrieve(batch.id))
    assert batch.status == "completed"
    assert (batch.request_counts.completed, batch.request_counts.failed) == (60, 1)
    assert read(asking, batch.output_file_id).keys() == {f"{i}" for i in range(60)}
    assert asking.files.content(batch.output_file_id).content.startswith(whole)
    sizes = [path.stat().st_size for path in left.iterdir() if path.suffix == ""]
    assert again.n_bytes == sum(sizes)


def test_no_room_for_answers(serve: Any, client: Client, fakes: Any, tmp_path: Path) -> None:
    store = Store(tmp_path, 6000)
    asking = client(serve(fakes.engine(), batch_store=store))
    batch = ended(asking, submit(asking, [line(f"{i}") for i in range(20)]))
    assert batch.status == "failed"
    assert "--batch-storage" in batch.errors.data[0].message
    assert len(read(asking, batch.output_file_id)) == batch.request_counts.completed > 0
    assert store.n_bytes <= 6000


def test_one_server_at_a_time(store: Store) -> None:
    with pytest.raises(StoreError, match="used by another server"):
        Store(store.path, 2**20)


def test_without_a_folder(serve: Any, client: Client, fakes: Any) -> None:
    url = serve(fakes.engine())
    for path in ("/v1/files", "/v1/batches"):
        refused = httpx.get(url + path)
        assert refused.status_code == 501
        assert "--batch-path" in refused.json()["error"]["message"]
