"""--warmup-prompt: what of a conversation is computed ahead."""

from __future__ import annotations

from typing import Any

import pytest

from gguf_serve.engine.errors import EngineError
from gguf_serve.engine.request import Failed
from gguf_serve.server.errors import ApiError
from gguf_serve.server.requests.service import Service
from gguf_serve.server.requests.warm_prompt import warm_up

SYSTEM = {"role": "system", "content": "Be brief."}


def computed(engine: Any) -> str:
    """The prompt of the one request, of which no text is wanted."""
    (request,) = engine.requests
    assert request.max_tokens == 0
    return bytes(request.prompt[1:]).decode()


def test_what_conversations_with_a_system_prompt_begin_with(fakes: Any) -> None:
    engine = fakes.engine()
    n = warm_up(Service(engine), {"messages": [SYSTEM]})
    assert computed(engine) == "system: Be brief.\nuser: "
    assert n == 1 + len("system: Be brief.\nuser: ")


def test_messages_after_it_and_tools(fakes: Any) -> None:
    engine = fakes.engine()
    said = [SYSTEM, {"role": "assistant", "content": "Hello"}]
    tools = [{"type": "function", "function": {"name": "look", "parameters": {}}}]
    warm_up(Service(engine), {"messages": said, "tools": tools})
    assert computed(engine) == "system: Be brief.\nassistant: Hello\nuser: "
    assert engine.chat_template.asked()["tools"][0]["function"]["name"] == "look"


def test_a_request_that_fails(fakes: Any) -> None:
    engine = fakes.engine(lambda request, cancelled: [Failed("the device is gone")])
    with pytest.raises(EngineError, match="--warmup-prompt: the device is gone"):
        warm_up(Service(engine), {"messages": [SYSTEM]})


def test_messages_that_are_none(fakes: Any) -> None:
    with pytest.raises(ApiError, match="content"):
        warm_up(Service(fakes.engine()), {"messages": [{"role": "system"}]})
