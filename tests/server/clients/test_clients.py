"""Programs that people use, against the server: each does its own round of requests."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.server.requests import unknown

CALL = '<tool_call>\n{"name": "User", "arguments": {"name": "Ada", "age": 36}}\n</tool_call>'
TOOL = {
    "type": "function",
    "function": {
        "name": "User",
        "parameters": {
            "type": "object",
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        },
    },
}


@pytest.fixture(autouse=True)
def every_field_is_known(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """What these programs send is understood, or said to change nothing."""
    yield
    told = [record for record in caplog.get_records("call") if record.name == unknown.__name__]
    assert not told


@pytest.fixture
def calling(serve: Any, fakes: Any) -> str:
    """The URL of a model that answers with a call."""
    engine = fakes.engine(fakes.say(CALL))
    engine.chat_template = ChatTemplate(fakes.hermes)
    return str(serve(engine))


@pytest.fixture
def talking(serve: Any, fakes: Any) -> str:
    engine = fakes.engine(fakes.say("Hello wörld"))
    engine.chat_template = ChatTemplate(fakes.hermes)
    return str(serve(engine))


def test_openai_calls(calling: str, client: Any) -> None:
    create = client(calling).chat.completions.create
    messages = [{"role": "user", "content": "who?"}]
    answer = create(model="m", messages=messages, tools=[TOOL]).choices[0]
    assert answer.finish_reason == "tool_calls"
    (call,) = answer.message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)["age"]) == ("User", 36)
    arguments, ids = "", []
    for chunk in create(model="m", messages=messages, tools=[TOOL], stream=True):
        for delta in chunk.choices[0].delta.tool_calls or []:
            ids += [delta.id] * bool(delta.id)
            arguments += delta.function.arguments or ""
    assert json.loads(arguments) == {"name": "Ada", "age": 36}
    assert len(ids) == 1
    result = {"role": "tool", "tool_call_id": ids[0], "content": "ok"}
    messages += [answer.message.model_dump(), result]
    assert create(model="m", messages=messages, tools=[TOOL]).choices[0].message.tool_calls


def test_anthropic_calls(calling: str) -> None:
    import anthropic

    tool = {"name": "User", "input_schema": TOOL["function"]["parameters"]}
    with anthropic.Anthropic(base_url=calling, api_key="k", max_retries=0) as client:
        given = {
            "model": "m",
            "max_tokens": 500,
            "tools": [tool],
            "messages": [{"role": "user", "content": "who?"}],
        }
        answer = client.messages.create(**given)
        assert answer.stop_reason == "tool_use"
        assert answer.content[0].input == {"name": "Ada", "age": 36}
        with client.messages.stream(**given) as stream:
            streamed = stream.get_final_message()
        assert streamed.stop_reason == "tool_use"
        assert streamed.content[0].input == {"name": "Ada", "age": 36}


def test_ollama_calls(calling: str) -> None:
    import ollama

    client = ollama.Client(host=calling)
    given: dict[str, Any] = {"messages": [{"role": "user", "content": "who?"}], "tools": [TOOL]}
    (call,) = client.chat("m", **given).message.tool_calls or ()
    assert (call.function.name, call.function.arguments["age"]) == ("User", 36)
    parts = [part.message.tool_calls for part in client.chat("m", stream=True, **given)]
    (calls,) = [calls for calls in parts if calls]
    assert calls[0].function.arguments == {"name": "Ada", "age": 36}
    client._client.close()


def test_responses_calls(calling: str, client: Any) -> None:
    tool = {"type": "function", **TOOL["function"]}
    stream = client(calling).responses.create(model="m", input="who?", tools=[tool], stream=True)
    events = list(stream)
    kinds = [event.type.removeprefix("response.") for event in events]
    assert kinds[2] == "output_item.added"
    assert kinds[-3:] == ["function_call_arguments.done", "output_item.done", "completed"]
    assert set(kinds[3:-3]) == {"function_call_arguments.delta"}
    (item,) = events[-1].response.output
    assert (item.type, item.name, json.loads(item.arguments)["age"]) == (
        "function_call",
        "User",
        36,
    )
    pieces = "".join(event.delta for event in events if event.type.endswith("arguments.delta"))
    assert pieces == item.arguments


def test_langchain(calling: str, talking: str) -> None:
    chat_openai = pytest.importorskip("langchain_openai").ChatOpenAI
    model = chat_openai(base_url=f"{talking}/v1", api_key="k", model="m", max_retries=0)
    assert model.invoke("hi").content == "Hello wörld"
    assert "".join(chunk.content for chunk in model.stream("hi")) == "Hello wörld"
    model = chat_openai(base_url=f"{calling}/v1", api_key="k", model="m", max_retries=0)
    (call,) = model.bind_tools([TOOL]).invoke("who?").tool_calls
    assert (call["name"], call["args"]) == ("User", {"name": "Ada", "age": 36})


def test_instructor(calling: str, client: Any) -> None:
    instructor = pytest.importorskip("instructor")
    from pydantic import BaseModel

    class User(BaseModel):
        name: str
        age: int

    patched = instructor.from_openai(client(calling), mode=instructor.Mode.TOOLS)
    user = patched.chat.completions.create(
        model="m", messages=[{"role": "user", "content": "who?"}], response_model=User
    )
    assert (user.name, user.age) == ("Ada", 36)


NODE = """
import OpenAI from "openai";
const client = new OpenAI({ baseURL: process.argv[2], apiKey: "k", maxRetries: 0 });
const messages = [{ role: "user", content: "hi" }];
const whole = await client.chat.completions.create({ model: "m", messages });
let streamed = "";
const stream = await client.chat.completions.create({ model: "m", messages, stream: true });
for await (const chunk of stream) streamed += chunk.choices[0]?.delta?.content ?? "";
const response = await client.responses.create({ model: "m", input: "hi" });
const models = await client.models.list();
console.log(JSON.stringify([
  whole.choices[0].message.content, streamed, response.output_text, models.data[0].id,
]));
"""


@pytest.mark.slow
def test_openai_for_node(talking: str, tmp_path: Path) -> None:
    node, npm = shutil.which("node"), shutil.which("npm")
    if node is None or npm is None:
        pytest.skip("needs node and npm")
    script = tmp_path / "ask.mjs"
    script.write_text(NODE)
    install = [npm, "install", "--silent", "--no-audit", "--no-fund", "openai"]
    if subprocess.run(install, cwd=tmp_path, timeout=240).returncode != 0:
        pytest.skip("npm cannot install openai")
    done = subprocess.run(
        [node, str(script), f"{talking}/v1"], cwd=tmp_path, capture_output=True, text=True,
        timeout=60, check=True,
    )  # fmt: skip
    text = "Hello wörld"
    assert json.loads(done.stdout) == [text, text, text, "tiny.Q8_0.gguf"]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_litellm(talking: str, calling: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    litellm = pytest.importorskip("litellm")
    given: dict[str, Any] = {"messages": [{"role": "user", "content": "hi"}], "api_key": "k"}
    for model, base in (
        ("openai/m", f"{talking}/v1"),
        ("anthropic/m", talking),
        ("ollama_chat/m", talking),
    ):
        answer = litellm.completion(model=model, api_base=base, **given)
        assert answer.choices[0].message.content == "Hello wörld", model
    answer = litellm.completion(model="openai/m", api_base=f"{calling}/v1", tools=[TOOL], **given)
    assert answer.choices[0].message.tool_calls[0].function.name == "User"
