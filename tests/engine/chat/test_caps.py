import json

import pytest

from gguf_serve.engine.chat.rendering.template import ChatTemplate

# The template takes typed parts and shows them; llama.cpp's inspection does not notice.
BETTER = {("LFM2.5-8B-A1B.jinja", "supports_typed_content")}


def test_abilities_are_those_that_llama_cpp_finds(shared):
    path = shared / "conformance" / "chat" / "caps.jsonl"
    different, compared = set(), 0
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        source = (shared / "templates" / record["template"]).read_text(encoding="utf-8")
        found = ChatTemplate(source, bos_token="<s>", eos_token="</s>").caps.as_props()
        assert found.keys() == record["caps"].keys()
        different |= {(record["template"], k) for k in found if found[k] != record["caps"][k]}
        compared += 1
    assert different == BETTER
    assert compared == 70


def test_plain_template_takes_only_strings():
    caps = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}").caps
    assert caps.supports_system_role
    assert caps.supports_string_content
    assert caps.supports_tool_responses
    assert caps.reasoning_field is None
    assert not any((caps.supports_typed_content, caps.supports_tools, caps.supports_tool_calls))


@pytest.mark.parametrize(
    ("arguments", "wants_object"),
    [
        ("c.function.arguments | tojson", True),
        ("c.function.arguments", False),
        ("c.function.arguments | items | list", False),
        ("c.function.arguments.keys() | join", True),
    ],
)
def test_arguments(arguments, wants_object):
    source = "{% for m in messages %}{% for c in m.tool_calls %}{{ c.function.name }}@{% endfor %}"
    source = source.replace("@", "{{ " + arguments + " }}") + "{% endfor %}"
    assert ChatTemplate(source).caps.supports_object_arguments is wants_object


@pytest.mark.parametrize("field", ["reasoning_content", "thinking"])
def test_reasoning_field(field):
    source = "{% for m in messages %}{{ m.content }}{{ m." + field + " }}{% endfor %}"
    assert ChatTemplate(source).caps.reasoning_field == field
