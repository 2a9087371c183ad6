import pytest
from msgspec.structs import replace

from gguf_serve.engine.chat.messages import adapt
from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.errors import RequestError

CAPS = ChatTemplate("{% for m in messages %}{{ m.content }}{% endfor %}").caps
OBJECTS = replace(CAPS, supports_object_arguments=True)
PARTS = replace(CAPS, supports_typed_content=True)
NO_SYSTEM = replace(CAPS, supports_system_role=False)


def text(value: str) -> dict[str, str]:
    return {"type": "text", "text": value}


def call(arguments: object) -> dict[str, object]:
    calls = [{"id": "c", "type": "function", "function": {"name": "f", "arguments": arguments}}]
    return {"role": "assistant", "content": None, "tool_calls": calls}


def arguments_of(message: dict[str, object], caps: object) -> object:
    return adapt([message], caps)[0]["tool_calls"][0]["function"]["arguments"]


@pytest.mark.parametrize(
    ("content", "string"),
    [
        (None, ""),
        ("a", "a"),
        ([], ""),
        ([text("a"), text("b")], "a\nb"),
        ([text("a"), {"type": "media_marker", "text": "<m>"}, text("b")], "a<m>b"),
    ],
)
def test_content_becomes_a_string(content, string):
    assert adapt([{"role": "user", "content": content}], CAPS)[0]["content"] == string


def test_missing_content_is_empty():
    assert adapt([{"role": "assistant"}], CAPS) == [{"role": "assistant", "content": ""}]


def test_parts_stay_where_the_template_takes_them():
    adapted = adapt([{"role": "user", "content": [text("a"), text("b")]}], PARTS)
    assert adapted[0]["content"] == [text("a"), text("b")]


def test_developer_is_system():
    assert adapt([{"role": "developer", "content": "d"}], CAPS)[0]["role"] == "system"


@pytest.mark.parametrize(
    ("sent", "given"),
    [
        ('{"a": 1}', {"a": 1}),
        ("", {}),
        ({"a": 1}, {"a": 1}),
        ('{"a": ', '{"a": '),  # a model's earlier mistake must not fail the conversation
        ("[1]", "[1]"),
    ],
)
def test_arguments_as_object(sent, given):
    assert arguments_of(call(sent), OBJECTS) == given


@pytest.mark.parametrize(("sent", "given"), [('{"a":1}', '{"a":1}'), ({"é": 1}, '{"é": 1}')])
def test_arguments_as_text(sent, given):
    assert arguments_of(call(sent), CAPS) == given


def test_system_is_folded_into_the_next_message():
    def roles_and_contents(*messages: tuple[str, str]) -> list[tuple[str, str]]:
        sent = [{"role": role, "content": content} for role, content in messages]
        return [(m["role"], m["content"]) for m in adapt(sent, NO_SYSTEM)]

    assert roles_and_contents(("system", "S"), ("user", "U")) == [("user", "S\nU")]
    assert roles_and_contents(("user", "U"), ("system", "S")) == [("user", "U"), ("user", "S")]
    assert roles_and_contents(("system", "S"), ("system", "T"), ("user", "U")) == [
        ("user", "S\nT\nU")
    ]


@pytest.mark.parametrize(
    ("field", "expected"),
    [
        ("reasoning_content", {"content": "a", "reasoning_content": "r"}),
        ("thinking", {"content": "a", "thinking": "r"}),
        ("part", {"content": [{"type": "thinking", "thinking": "r"}, text("a")]}),
        (None, {"content": "a", "reasoning_content": "r"}),
    ],
)
def test_reasoning_goes_where_the_template_reads_it(field, expected):
    caps = replace(CAPS, reasoning_field=field)
    message = {"role": "assistant", "content": "a", "reasoning_content": "r"}
    assert adapt([message], caps) == [{"role": "assistant", **expected}]


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ("x", r"messages\[0\].role: expected a string, got None"),
        ({"content": "x"}, r"messages\[0\].role: expected a string, got None"),
        ({"role": "user", "content": 3}, r"messages\[0\].content: expected text or parts, got 3"),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {}}]},
            r"messages\[0\].content: unsupported part 'image_url'",
        ),
        ({"role": "user", "content": ["x"]}, "unsupported part 'x'"),
        ({"role": "assistant", "tool_calls": {"a": 1}}, "tool_calls: expected a list"),
        ({"role": "assistant", "tool_calls": [{"id": "x"}]}, r"\[0\].tool_calls\[0\]: expected"),
    ],
)
def test_what_no_template_takes_is_refused(message, error):
    with pytest.raises(RequestError, match=error):
        adapt([message], CAPS)
