"""Responses and conversations that are kept, through OpenAI's client."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import openai
import pytest

from gguf_serve.engine.request import Delta, Event, Failed, Finished, Request, Started, Timings

TEXT = "Hello wörld"


@pytest.fixture
def engine(fakes: Any) -> Any:
    return fakes.engine()


@pytest.fixture
def api(serve: Any, engine: Any, client: Any) -> openai.OpenAI:
    made: openai.OpenAI = client(serve(engine))
    return made


def prompt_of(engine: Any) -> str:
    return str(engine.tokenizer.decode(engine.requests[-1].prompt))


def until(condition: Callable[[], bool]) -> None:
    begin = time.monotonic()
    while not condition():
        assert time.monotonic() - begin < 30
        time.sleep(0.01)


class Held:
    """A script that writes a, b, c, and waits before each but the first for a word to go on."""

    def __init__(self, end: Event | None = None) -> None:
        self.end = end or Finished("eos", Timings(predicted_n=3))
        self.goes_on = threading.Semaphore(0)

    def __call__(self, request: Request, cancelled: threading.Event) -> Iterator[Event]:
        yield Started(4, 1, 0)
        for letter in "abc":
            yield Delta(letter, (ord(letter),))
            while not self.goes_on.acquire(timeout=0.02):
                if cancelled.is_set():
                    yield Finished("cancelled", Timings())
                    return
        yield self.end


@pytest.mark.parametrize("stream", [False, True])
def test_a_response_goes_on_from_another(api: openai.OpenAI, engine: Any, stream: bool) -> None:
    first: Any = api.responses.create(
        model="m", input="one", instructions="Be brief", stream=stream
    )
    first = list(first)[-1].response if stream else first
    assert first.store is True
    second = api.responses.create(model="m", input="two", previous_response_id=first.id)
    assert second.previous_response_id == first.id
    messages = engine.chat_template.calls[-1]["messages"]
    assert [message["role"] for message in messages] == ["user", "assistant", "user"]
    assert [TEXT in prompt_of(engine), "Be brief" in prompt_of(engine)] == [True, False]
    items = api.responses.input_items.list(second.id, order="asc").data
    assert [item.type for item in items] == ["message"] * 3
    assert api.responses.retrieve(first.id).output_text == TEXT
    api.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError, match="no response"):
        api.responses.retrieve(first.id)
    api.responses.create(model="m", input="three", previous_response_id=second.id)
    assert "one" in prompt_of(engine)  # the second holds all that it went on from


def test_faults_of_a_next_turn_are_named_by_its_own_items(api: openai.OpenAI) -> None:
    first = api.responses.create(model="m", input="one")
    wrong: Any = [{"type": "function_call", "name": "f"}]
    with pytest.raises(openai.BadRequestError, match=r"input\[0\]"):
        api.responses.create(model="m", input=wrong, previous_response_id=first.id)
    with pytest.raises(openai.BadRequestError, match="cannot go with"):
        api.responses.create(
            model="m", input="x", previous_response_id=first.id, conversation="conv_1"
        )


def test_what_is_not_to_be_kept(api: openai.OpenAI) -> None:
    answer = api.responses.create(model="m", input="one", store=False)
    assert answer.store is False
    with pytest.raises(openai.NotFoundError):
        api.responses.retrieve(answer.id)


def test_without_memory(serve: Any, engine: Any, client: Any) -> None:
    url = serve(engine, response_memory=0)
    api = client(url)
    assert api.responses.create(model="m", input="one").store is False
    for fields in ({"previous_response_id": "resp_1"}, {"background": True}):
        with pytest.raises(openai.BadRequestError, match=next(iter(fields))):
            api.responses.create(model="m", input="one", **fields)
    assert httpx.post(url + "/v1/conversations", json={}).status_code == 501


def test_another_key_finds_nothing(serve: Any, engine: Any, client: Any) -> None:
    url = serve(engine, api_keys=["a", "b"])
    first = client(url, "a").responses.create(model="m", input="one")
    with pytest.raises(openai.NotFoundError):
        client(url, "b").responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError):
        client(url, "b").responses.create(model="m", input="x", previous_response_id=first.id)


def test_conversations(api: openai.OpenAI, engine: Any) -> None:
    rules: Any = {"role": "developer", "content": "rules"}
    talk = api.conversations.create(items=[rules], metadata={"a": "b"})
    for text in ("one", "two"):
        answer = api.responses.create(model="m", input=text, conversation=talk.id)
        assert answer.conversation is not None
        assert answer.conversation.id == talk.id
    roles = [message["role"] for message in engine.chat_template.calls[-1]["messages"]]
    assert roles == ["developer", "user", "assistant", "user"]
    added: Any = {"role": "user", "content": "three"}
    assert len(api.conversations.items.create(talk.id, items=[added]).data) == 1
    items = api.conversations.items.list(talk.id, order="asc").data
    assert len(items) == 6
    assert api.conversations.retrieve(talk.id).metadata == {"a": "b"}
    assert api.conversations.update(talk.id, metadata={"c": "d"}).metadata == {"c": "d"}
    assert api.conversations.delete(talk.id).deleted
    with pytest.raises(openai.BadRequestError, match="no conversation"):
        api.responses.create(model="m", input="x", conversation=talk.id)


def test_in_the_background(serve: Any, fakes: Any, client: Any) -> None:
    script = Held()
    api = client(serve(fakes.engine(script)))
    answer = api.responses.create(model="m", input="hi", background=True)
    assert answer.status in ("queued", "in_progress")
    with pytest.raises(openai.BadRequestError, match="has not ended"):
        api.responses.create(model="m", input="x", previous_response_id=answer.id)
    script.goes_on.release(3)
    until(lambda: api.responses.retrieve(answer.id).status == "completed")
    done = api.responses.retrieve(answer.id)
    assert (done.output_text, done.background, done.usage.output_tokens) == ("abc", True, 3)
    script.goes_on.release(3)
    assert api.responses.create(model="m", input="x", previous_response_id=done.id).output_text


def test_a_stream_is_taken_up_where_it_broke_off(serve: Any, fakes: Any, client: Any) -> None:
    script = Held()
    engine = fakes.engine(script)
    api = client(serve(engine))
    stream = api.responses.create(model="m", input="hi", background=True, stream=True)
    first = [next(stream) for _ in range(5)]
    stream.close()
    assert (first[-1].type, first[-1].delta) == ("response.output_text.delta", "a")
    id, last = first[0].response.id, first[-1].sequence_number
    script.goes_on.release(1)
    rest = api.responses.retrieve(id, stream=True, starting_after=last)
    taken = [next(rest)]
    script.goes_on.release(2)
    taken += rest
    assert "".join(e.delta for e in taken if e.type == "response.output_text.delta") == "bc"
    assert [e.sequence_number for e in taken] == list(range(last + 1, last + 1 + len(taken)))
    assert taken[-1].response.output_text == "abc"
    again = list(api.responses.retrieve(id, stream=True))
    assert [e.sequence_number for e in again] == list(range(len(first) + len(taken)))
    assert engine.cancelled == []


def test_cancel(serve: Any, fakes: Any, client: Any) -> None:
    engine = fakes.engine(Held())
    api = client(serve(engine))
    answer = api.responses.create(model="m", input="hi", background=True)
    assert api.responses.cancel(answer.id).status == "cancelled"
    until(lambda: engine.n_running == 0)
    events = list(api.responses.retrieve(answer.id, stream=True))
    assert events[-1].type == "response.cancelled"
    assert api.responses.cancel(answer.id).status == "cancelled"
    other = api.responses.create(model="m", input="hi", background=True)
    api.responses.delete(other.id)
    until(lambda: engine.n_running == 0)


def test_a_failure_in_the_background(serve: Any, fakes: Any, client: Any) -> None:
    script = Held(Failed("the device is gone"))
    script.goes_on.release(3)
    api = client(serve(fakes.engine(script)))
    answer = api.responses.create(model="m", input="hi", background=True)
    until(lambda: api.responses.retrieve(answer.id).status == "failed")
    assert "the device is gone" in api.responses.retrieve(answer.id).error.message


def test_what_does_not_run_in_the_background(api: openai.OpenAI) -> None:
    answer = api.responses.create(model="m", input="hi")
    with pytest.raises(openai.BadRequestError, match="does not run in the background"):
        api.responses.cancel(answer.id)
    with pytest.raises(openai.BadRequestError, match="keep their events"):
        api.responses.retrieve(answer.id, stream=True)
