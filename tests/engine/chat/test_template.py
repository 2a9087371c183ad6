"""Rendering: the records of 70 models' templates, and the contract with the server."""

import functools
import json
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from gguf_serve.engine.chat.builtin import builtin_template
from gguf_serve.engine.chat.rendering.selection import named_template, select_template
from gguf_serve.engine.chat.rendering.template import ChatTemplate, with_aliases
from gguf_serve.engine.errors import ModelError, RequestError

CLOCK = datetime(2026, 1, 2, 3, 4, 5)
PRINT_ALL = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"

# Prompts in which llama.cpp is wrong and this server does otherwise.
DIFFERENT = {
    # It cuts the generation prompt where it stops being equal to the EOS text: "|assistant|>".
    "microsoft-Phi-3.5-mini-instruct/render/017",
    "microsoft-Phi-3.5-mini-instruct/render/018",
    # It opens the thinking twice: "<think><think>".
    "llama-cpp-rwkv-world/render/018",
}


@functools.cache
def compiled(source: str, bos_token: str, eos_token: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token=bos_token, eos_token=eos_token, now=lambda: CLOCK)


def render_request(source: str, request: dict[str, Any]) -> str:
    template = compiled(source, request["bos_token"], request["eos_token"])
    return template.render(
        request["messages"],
        tools=request["tools"],
        add_generation_prompt=request["add_generation_prompt"],
        continue_final_message=request["continue_final_message"],
        json_schema=request["json_schema"],
        extra={"enable_thinking": request["enable_thinking"], **request["chat_template_kwargs"]},
    )


def records(shared: Path, template: Path) -> Iterator[dict[str, Any]]:
    path = shared / "conformance" / "chat" / f"{template.stem}.jsonl"
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if record["kind"] in ("parse", "render"):
            yield record


def sources(shared: Path) -> Iterator[tuple[Path, str]]:
    for template in sorted((shared / "templates").glob("*.jinja")):
        yield template, template.read_text(encoding="utf-8")


def test_every_recorded_prompt_is_equal(shared):
    different, equal = set(), 0
    for template, source in sources(shared):
        for record in records(shared, template):
            if "prompt" not in record:
                continue
            if render_request(source, record["request"]) == record["prompt"]:
                equal += 1
            else:
                different.add(record["id"])
    assert different == DIFFERENT
    assert equal == 1553


def test_what_llama_cpp_refuses_is_refused_with_the_templates_own_words(shared):
    refused = {}
    for template, source in sources(shared):
        for record in records(shared, template):
            if "prompt" not in record:
                with pytest.raises(RequestError) as caught:
                    render_request(source, record["request"])
                refused[record["id"]] = str(caught.value)
    single = "This model only supports single tool-calls at once!"
    assert refused.pop("google-gemma-2-2b-it/render/016").startswith("Conversation roles must")
    assert len(refused) == 3
    assert set(refused.values()) == {single}


def test_every_template_renders_a_conversation_with_tools_or_says_why_not(shared):
    tool = {
        "type": "function",
        "function": {
            "name": "weather",
            "description": "The weather",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    call = {"id": "call00001", "type": "function"}
    call["function"] = {"name": "weather", "arguments": '{"city": "Oslo"}'}
    messages = [
        {"role": "system", "content": "SYSTEM"},
        {"role": "user", "content": [{"type": "text", "text": "QUESTION"}]},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "call00001", "content": "RESULT"},
        {"role": "assistant", "content": "ANSWER"},
        {"role": "user", "content": "NEXT"},
    ]
    silent, refused = {}, {}
    for template, source in sources(shared):
        try:
            text = compiled(source, "<s>", "</s>").render(messages, tools=[tool])
        except RequestError as error:
            refused[template.stem] = str(error)
            continue
        silent[template.stem] = [
            word for word in ("SYSTEM", "QUESTION", "RESULT", "ANSWER", "NEXT") if word not in text
        ]
    assert list(refused) == ["google-gemma-2-2b-it"]
    assert refused["google-gemma-2-2b-it"].startswith("Conversation roles must alternate")
    assert len(silent) == 69
    # These know no tool role and leave such messages out.
    assert {name: missing for name, missing in silent.items() if missing} == {
        "llama-cpp-rwkv-world": ["RESULT"],
        "microsoft-Phi-3.5-mini-instruct": ["RESULT"],
    }


def test_template_text_records(shared):
    path = shared / "conformance" / "chat" / "template_text.jsonl"
    compared = 0
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        template = ChatTemplate(
            record["template_text"],
            bos_token=record["bos_token"],
            eos_token=record["eos_token"],
        )
        text = template.render(
            record["messages"], add_generation_prompt=record["add_generation_prompt"]
        )
        assert text == record["expected_jinja"], record["id"]
        compared += 1
    assert compared == 26


def test_source_that_does_not_compile_is_named_with_its_line():
    with pytest.raises(ModelError, match=r"chat template, line 3: .*endfor"):
        ChatTemplate("line\nline\n{% endfor %}")
    with pytest.raises(ModelError, match="line 2: No filter named 'nope'"):
        ChatTemplate("line\n{{ messages | nope }}")
    with pytest.raises(ModelError, match="nested too deeply"):
        ChatTemplate("{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}")


def test_the_templates_own_refusal_is_the_message():
    template = ChatTemplate("{{ raise_exception('Roles must alternate, please') }}")
    with pytest.raises(RequestError, match=r"^Roles must alternate, please$"):
        template.render([{"role": "user", "content": "x"}])


def test_failure_names_line_and_kind():
    template = ChatTemplate("a\nb\n{{ messages[0].content + 1 }}")
    with pytest.raises(RequestError, match=r"^chat template, line 3: TypeError: "):
        template.render([{"role": "user", "content": "x"}])


def test_a_template_that_calls_itself_without_end():
    source = "{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"
    with pytest.raises(RequestError, match="calls itself"):
        ChatTemplate(source).render([{"role": "user", "content": "x"}])


def test_a_template_changes_nothing_of_the_callers():
    messages = [{"role": "user", "content": "x"}]
    tools = [{"type": "function", "function": {"name": "f"}}]
    source = "{{ messages.pop() }}{{ tools.append(1) }}{{ messages|length }}{{ tools|length }}"
    template = ChatTemplate(source)
    assert template.render(messages, tools=tools) == template.render(messages, tools=tools)
    assert messages == [{"role": "user", "content": "x"}]
    assert len(tools) == 1


def test_absent_variables_are_undefined():
    template = ChatTemplate("{{ tools is defined }} {{ add_generation_prompt is defined }}")
    messages = [{"role": "user", "content": "x"}]
    assert template.render(messages, tools=[], add_generation_prompt=False) == "False False"
    assert template.render(messages, tools=[{}], add_generation_prompt=True) == "True True"


def test_extra_variables_and_tokens_reach_the_template():
    template = ChatTemplate(
        "{{ bos_token }}{{ mood }}{{ eos_token }}", bos_token="B", eos_token="E"
    )
    assert template.render([{"role": "user", "content": "x"}], extra={"mood": "good"}) == "BgoodE"


def test_aliases_of_reasoning_options():
    assert with_aliases({"preserve_reasoning": True, "reasoning_effort": "low"}) == {
        "preserve_reasoning": True,
        "preserve_thinking": True,
        "clear_thinking": False,
        "truncate_history_thinking": False,
        "drop_thinking": False,
        "reasoning_effort": "low",
        "reasoning_strength": "low",
    }
    assert with_aliases({"preserve_reasoning": True, "drop_thinking": True})["drop_thinking"]


def test_templates_of_a_file():
    metadata = {"tokenizer.chat_template": "A", "tokenizer.chat_template.tool_use": "B"}
    assert select_template(metadata) == ("A", "B")
    assert select_template({"tokenizer.chat_template": "A"}) == ("A", None)
    assert select_template({}).default == builtin_template("chatml")
    with pytest.raises(ModelError, match="expected a string, got int"):
        select_template({"tokenizer.chat_template": 3})


def test_requests_with_tools_take_the_template_for_them():
    messages, tools = [{"role": "user", "content": "x"}], [{"type": "function"}]
    both = ChatTemplate("A", tool_use="B")
    assert both.render(messages) == "A"
    assert both.render(messages, tools=tools) == "B"
    assert (both.for_tools(False).source, both.for_tools(True).source) == ("A", "B")
    assert ChatTemplate("A").render(messages, tools=tools) == "A"


def test_template_by_name_or_text():
    assert named_template("gemma") == builtin_template("gemma")
    assert named_template(PRINT_ALL) == PRINT_ALL
    assert named_template("This is no template, it is") == "This is no template, it is"
    with pytest.raises(ModelError, match=r"unknown chat template 'gema'; known are .*gemma, "):
        named_template("gema")
