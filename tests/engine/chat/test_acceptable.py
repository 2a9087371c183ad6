"""Conversations that templates refuse, with small templates that do and with real ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from gguf_serve.engine.chat.format import chat_format
from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.errors import RequestError

ALL = "{% for m in messages %}{{ m.role }}={{ m.content }};{% endfor %}"
FIRST_SYSTEM = (
    "{% for m in messages %}{% if m.role == 'system' and not loop.first %}"
    "{{ raise_exception('system first') }}{% endif %}{% endfor %}" + ALL
)
ALTERNATES = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('alternate') }}{% endif %}{% endfor %}" + ALL
)
NEEDS_USER = (
    "{% if not messages | selectattr('role', 'equalto', 'user') | list %}"
    "{{ raise_exception('no user') }}{% endif %}" + ALL
)
LOSES = (
    "{% for m in messages %}{% if m.role != 'system' or loop.first %}{{ m.content }};"
    "{% endif %}{% endfor %}"
)
SYSTEM = {"role": "system", "content": "S"}
USER = {"role": "user", "content": "U"}
ANSWER = {"role": "assistant", "content": "A"}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "R"}
TOOLS = [{"type": "function", "function": {"name": "f"}}]


def call(arguments: Any = '{"a": 1}', id: str | None = "1", **more: Any) -> dict[str, Any]:
    function = {"name": "f", "arguments": arguments}
    calls = [{"id": id, "type": "function", "function": function}]
    return {"role": "assistant", "content": "", "tool_calls": calls, **more}


def prompt_of(source: str, messages: Sequence[dict[str, Any]], **request: Any) -> str:
    return chat_format(ChatTemplate(source), messages, **request).prompt


def test_what_a_template_takes_is_rendered_as_it_is():
    messages = [SYSTEM, SYSTEM, USER, USER, {"role": "function", "content": "R"}]
    assert prompt_of(ALL, messages) == "system=S;system=S;user=U;user=U;function=R;"


def test_systems_at_the_beginning_are_one_and_later_ones_the_users():
    late = {"role": "developer", "content": "L"}
    prompt = prompt_of(FIRST_SYSTEM, [SYSTEM, {**SYSTEM, "content": "T"}, USER, late])
    assert prompt == "system=S\n\nT;user=U;user=L;"


def test_a_system_message_that_would_be_lost_is_the_users():
    assert prompt_of(LOSES, [SYSTEM, USER, {**SYSTEM, "content": "L"}]) == "S;U;L;"


def test_neighbours_of_one_role_are_one_message_parts_and_texts_alike():
    parts = [{"type": "text", "text": "P"}]
    prompt = prompt_of(ALTERNATES, [USER, {**USER, "content": parts}, ANSWER, ANSWER])
    assert prompt.startswith("user=U")
    assert prompt.count("user") == prompt.count("assistant") == 1
    assert "P" in prompt


def test_somebody_asks():
    assert prompt_of(NEEDS_USER, [SYSTEM]) == "user=S;"
    assert prompt_of(NEEDS_USER, [SYSTEM, ANSWER]) == "user=S;assistant=A;"
    assert prompt_of(ALTERNATES, [ANSWER, USER]) == "user=;assistant=A;user=U;"


def test_a_message_that_is_continued_stays_the_last():
    form = chat_format(ChatTemplate(ALTERNATES), [USER, USER, ANSWER], continue_final_message=True)
    assert form.prompt == "user=U\n\nU;A"


def test_calls_are_text_where_a_template_knows_none():
    prompt = prompt_of(ALTERNATES, [USER, call(), RESULT])
    told = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
    assert prompt == f"user=U;assistant={told};user=R;"


def test_a_refusal_for_good_is_the_templates_own():
    refuses = "{% if messages | length > 1 %}{{ raise_exception('one only') }}{% endif %}"
    with pytest.raises(RequestError, match=r"^one only$"):
        prompt_of(refuses, [USER, ANSWER])


CONVERSATIONS = {
    "late system": [SYSTEM, USER, ANSWER, {**SYSTEM, "content": "LATE"}, USER],
    "two systems": [SYSTEM, {**SYSTEM, "content": "T"}, USER],
    "only a system": [SYSTEM],
    "two users": [USER, USER],
    "the assistant first": [ANSWER, USER],
    "nulls": [USER, call(content=None, reasoning_content=None), RESULT],
    "a null id": [USER, call(id=None), {**RESULT, "tool_call_id": None}],
    "no calls": [USER, {**ANSWER, "tool_calls": []}, {**USER, "tool_calls": None}],
    "text and thoughts": [USER, call(content="T", reasoning_content="R"), RESULT],
    "cut off": [USER, call('{"a": "half'), RESULT],
    "no arguments": [USER, call(""), RESULT],
    "an object": [USER, call({"a": 1}), RESULT],
    "no result": [USER, call(), USER],
    "a result only": [USER, RESULT],
    "a function": [USER, {"role": "function", "name": "f", "content": "R"}],
}


def test_every_template_takes_every_conversation(shared: Path):
    refused, n_templates = {}, 0
    for path in sorted((shared / "templates").glob("*.jinja")):
        template = ChatTemplate(path.read_text(encoding="utf-8"), bos_token="<s>", eos_token="</s>")
        n_templates += 1
        for name, messages in CONVERSATIONS.items():
            calls = any(one["role"] == "tool" or one.get("tool_calls") for one in messages)
            try:
                form = chat_format(template, messages, tools=TOOLS if calls else None)
            except RequestError as error:
                refused[path.stem, name] = str(error)
            else:
                assert name != "late system" or "LATE" in form.prompt, path.stem
    assert refused == {}
    assert n_templates > 60


def test_ids_of_mistral_are_the_same_for_the_same_id(shared: Path):
    path = shared / "templates" / "mistralai-Mistral-Nemo-Instruct-2407.jinja"
    template = ChatTemplate(path.read_text(encoding="utf-8"))
    prompts = [
        chat_format(template, [USER, call(), {**RESULT, "tool_call_id": id}], tools=TOOLS).prompt
        for id in ("1", "2")
    ]
    (called, answered), (called_2, answered_2) = (
        [part[:9] for part in prompt.split('id": "')[1:]] for prompt in prompts
    )
    assert called == answered == called_2 != answered_2
