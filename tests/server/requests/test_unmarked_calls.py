"""A real model that forgets its syntax of calls: Qwen2.5-Coder-1.5B writes them in a code fence."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from gguf_serve.engine.engine import Engine, load_engine
from gguf_serve.engine.options import EngineOptions
from gguf_serve.server.options.request_defaults import Defaults

FILE = "Qwen2.5-Coder-1.5B-Instruct-Q4_K_M.gguf"
PARAMETERS = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
TOOL: Any = {
    "type": "function",
    "function": {
        "name": "get_weather", "description": "Get the weather of a city", "parameters": PARAMETERS,
    },
}  # fmt: skip
ASKED: dict[str, Any] = {
    "model": "m", "tools": [TOOL], "temperature": 0, "max_tokens": 100,
    "messages": [{"role": "user", "content": "What's the weather in Paris?"}],
}  # fmt: skip
# As it wrote it.
CALL = '```json\n{\n  "name": "get_weather",\n  "arguments": {\n    "city": "Paris"\n  }\n}\n```'


def check(api: openai.OpenAI) -> None:
    (choice,) = api.chat.completions.create(**ASKED).choices
    assert (choice.finish_reason, choice.message.content) == ("tool_calls", "")
    (call,) = choice.message.tool_calls or ()
    assert isinstance(call, openai.types.chat.ChatCompletionMessageFunctionToolCall)
    assert (call.function.name, json.loads(call.function.arguments)["city"]) == (
        "get_weather",
        "Paris",
    )
    names, arguments, reasons = [], "", []
    for chunk in api.chat.completions.create(**ASKED, stream=True):
        for one in chunk.choices:
            assert not one.delta.content
            reasons.append(one.finish_reason)
            for part in one.delta.tool_calls or ():
                assert part.function is not None
                names += [part.function.name] if part.function.name else []
                arguments += part.function.arguments or ""
    assert (names, json.loads(arguments)["city"], reasons[-1]) == (
        ["get_weather"],
        "Paris",
        "tool_calls",
    )


def test_a_recorded_answer(serve: Any, fakes: Any, client: Any) -> None:
    check(client(serve(fakes.engine(fakes.say(CALL)))))


def test_it_can_be_turned_off(serve: Any, fakes: Any, client: Any) -> None:
    engine = fakes.engine(fakes.say(CALL))
    api = client(serve(engine, defaults=Defaults(unmarked_tool_calls=False)))
    (choice,) = api.chat.completions.create(**ASKED).choices
    assert (choice.finish_reason, choice.message.content) == ("stop", CALL)


@pytest.fixture
def engine(shared: Path) -> Iterator[Engine]:
    path = shared / "models" / FILE
    if not path.is_file():
        pytest.skip(f"{FILE} is not there")
    made = load_engine(path, EngineOptions(n_ctx=2048, n_parallel=1))
    yield made
    made.close()


@pytest.mark.slow
def test_the_model_itself(serve: Any, engine: Engine, client: Any) -> None:
    check(client(serve(engine)).with_options(timeout=300))
