"""What is kept of responses: by whom it is found, what it holds, and what goes to make room."""

from __future__ import annotations

from typing import Any

import pytest

from gguf_serve.server.dialects.responses.memory import Kept, Memory, size, with_ids
from gguf_serve.server.errors import ApiError
from gguf_serve.server.http.client import client


def kept(id: str, text: str = "hi", **fields: Any) -> Kept:
    return Kept(id, with_ids(text), {"output": [{"id": "o", "type": "message"}]}, **fields)


def test_a_history_is_what_was_asked_and_answered() -> None:
    memory = Memory(10**6)
    memory.keep(kept("resp_1"))
    (asked, answered) = memory.find("id", "resp_1").history
    assert asked["content"] == [{"type": "input_text", "text": "hi"}]
    assert answered["id"] == "o"


@pytest.mark.parametrize("id", ["resp_2", "conv_1", None, 5, ["resp_1"]])
def test_what_is_not_there(id: Any) -> None:
    memory = Memory(10**6)
    memory.keep(kept("resp_1"))
    memory.keep(Kept("conv_1", ()))
    with pytest.raises(ApiError) as caught:
        memory.find("id", id)
    assert caught.value.status == 404
    with pytest.raises(ApiError, match="'previous_response_id'") as caught:
        memory.find("previous_response_id", id)
    assert caught.value.status == 400


def test_another_clients_are_not_there() -> None:
    memory = Memory(10**6)
    memory.keep(kept("resp_1"))
    token = client.set("somebody else")
    try:
        with pytest.raises(ApiError, match="no response"):
            memory.find("id", "resp_1")
    finally:
        client.reset(token)
    assert memory.find("id", "resp_1")


def test_the_longest_unused_goes_to_make_room() -> None:
    one = size(kept("resp_1"))
    memory = Memory(2 * one + 10)
    memory.keep(kept("resp_1"))
    memory.keep(kept("resp_2"))
    memory.find("id", "resp_1")
    memory.keep(kept("resp_3"))
    assert [memory.has(kept(f"resp_{n}")) for n in (1, 2, 3)] == [True, False, True]
    memory.keep(kept("resp_4", "x" * 3 * one))  # more than there is
    assert not any(memory.has(kept(f"resp_{n}")) for n in (1, 2, 3, 4))
    memory.keep(kept("resp_5"))
    memory.keep(kept("resp_5"))  # counts once
    memory.keep(kept("resp_6"))
    assert memory.has(kept("resp_5"))
    memory.forget(kept("resp_5"))
    assert not memory.has(kept("resp_5"))
