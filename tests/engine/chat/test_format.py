import pytest

from gguf_serve.engine.chat.delta import ChatDelta
from gguf_serve.engine.chat.format import ChatFormat, chat_format
from gguf_serve.engine.chat.rendering.selection import named_template
from gguf_serve.engine.chat.rendering.template import ChatTemplate
from gguf_serve.engine.errors import RequestError

USER = {"role": "user", "content": "U"}
THINKS = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>"
    "{% if not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
TOOL = {"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}


def read(chat: ChatFormat, *pieces: str) -> tuple[str, str]:
    parser = chat.parser()
    deltas = [parser.push(piece) for piece in pieces] + [parser.finish()]
    return "".join(d.content for d in deltas), "".join(d.reasoning for d in deltas)


def test_reasoning_is_split_off():
    chat = chat_format(ChatTemplate(THINKS), [USER])
    assert chat.prompt == "<user>U</end><assistant>"
    assert chat.generation_prompt == "<assistant>"
    assert read(chat, "<think>\nR\n</think>\n\nC\n") == ("C\n", "R\n")
    assert read(chat, *"<think>\nR\n</think>\n\nC\n") == ("C\n", "R\n")
    assert read(chat, "C <think> D") == ("C <think> D", "")
    assert read(chat, "<think>R") == ("", "R")
    assert read(chat, "<thi") == ("<thi", "")


@pytest.mark.parametrize(
    ("format", "expected"),
    [
        ("none", ("<think>\nR</think>\nC", "")),
        ("deepseek-legacy", ("<think>\nR</think>\nC", "R")),
        ("deepseek", ("C", "R")),
        ("auto", ("C", "R")),
    ],
)
def test_reasoning_formats(format, expected):
    chat = chat_format(ChatTemplate(THINKS), [USER], reasoning_format=format)
    assert read(chat, *"<think>\nR</think>\nC") == expected


def test_prefilled_thinking():
    off = chat_format(ChatTemplate(THINKS), [USER], template_kwargs={"enable_thinking": False})
    assert off.generation_prompt == "<assistant><think>\n\n</think>\n\n"
    assert read(off, "C") == ("C", "")
    last = {"role": "assistant", "content": "C", "reasoning_content": "R"}
    on = chat_format(
        ChatTemplate(THINKS),
        [USER, last],
        add_generation_prompt=False,
        continue_final_message="reasoning_content",
    )
    assert on.generation_prompt == "<assistant><think>R"
    assert read(on, " S</think>T") == ("T", "R S")


def test_a_continued_message_comes_with_the_first_delta():
    chat = chat_format(
        ChatTemplate(named_template("llama3")),
        [USER, {"role": "assistant", "content": "It "}],
        add_generation_prompt=False,
        continue_final_message=True,
    )
    parser = chat.parser()
    assert parser.push("is") == ChatDelta("It is")
    assert parser.push(" so") == ChatDelta(" so")


def test_choice_of_a_tool():
    template = ChatTemplate(THINKS)
    named = {"type": "function", "function": {"name": "f"}}
    assert list(chat_format(template, [USER], tools=[TOOL], tool_choice=named).turn.tools) == ["f"]
    assert not chat_format(template, [USER], tools=[TOOL], tool_choice="none").turn.tools
    other = {"type": "function", "function": {"name": "g"}}
    with pytest.raises(RequestError, match="no tool is named 'g'"):
        chat_format(template, [USER], tools=[TOOL], tool_choice=other)


@pytest.mark.parametrize("call", ["[]", '[{"name": "f", "arguments": {}}]', "[f(x=1),]"])
def test_python_calls_end_at_their_mark(call):
    """What comes after a broken call, with a bracket in it, is content and no name."""
    marked = ChatTemplate(THINKS + "{# <|tool_call_start|><|tool_call_end|><|tool_list_start|> #}")
    parser = chat_format(marked, [USER], tools=[TOOL]).parser()
    text = f"<|tool_call_start|>{call}<|tool_call_end|>No; call f(x=1) yourself."
    deltas = [*map(parser.push, text), parser.finish()]
    names = [c.name for d in deltas for c in d.calls if c.name]
    assert names == (["f"] if call.startswith("[f(") else [])
    assert "".join(d.content for d in deltas).endswith("No; call f(x=1) yourself.")


MARKED = THINKS + "{# <tool_call> #}"
CALL = '<tool_call>\n{"name": "f", "arguments": {"x": 1}}\n</tool_call>'


def read_all(chat: ChatFormat, text: str) -> tuple[str, str, list[tuple[str, str]]]:
    """Content, reasoning and calls, the text being written a character at a time."""
    parser = chat.parser()
    deltas = [*map(parser.push, text), parser.finish()]
    names: dict[int, str] = {}
    arguments: dict[int, str] = {}
    for call in (call for delta in deltas for call in delta.calls):
        names[call.index] = names.get(call.index, "") + call.name
        arguments[call.index] = arguments.get(call.index, "") + call.arguments
    content = "".join(delta.content for delta in deltas)
    reasoning = "".join(delta.reasoning for delta in deltas)
    return content, reasoning, [(names[i], arguments[i]) for i in names]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"<think>R {CALL}", ("", "R ", [("f", '{"x": 1}')])),
        (f"<think>R {CALL}\n{CALL}", ("", "R ", [("f", '{"x": 1}')] * 2)),
        (f"<think>R {CALL} S</think>C", ("C", f"R {CALL} S", [])),
        ("<think>R <tool_call> is how", ("", "R <tool_call> is how", [])),
        (f"<think>R</think>{CALL}", ("", "R", [("f", '{"x": 1}')])),
        ("<think><think>\nR</think>\n\n</think>\nC", ("C", "R", [])),
        (f"<tool_call>\n{CALL}", ("", "", [("f", '{"x": 1}')])),
        (f"{CALL}</tool_call>", ("", "", [("f", '{"x": 1}')])),
    ],
)
def test_calls_in_thinking_that_is_not_closed_and_marks_written_twice(text, expected):
    chat = chat_format(ChatTemplate(MARKED), [USER], tools=[TOOL])
    assert read_all(chat, text) == expected


def test_thinking_that_is_off_is_closed_once_before_a_continued_answer():
    last = {"role": "assistant", "content": "It is "}
    chat = chat_format(
        ChatTemplate(THINKS),
        [USER, last],
        add_generation_prompt=False,
        continue_final_message=True,
        template_kwargs={"enable_thinking": False},
    )
    assert chat.generation_prompt == "<assistant><think>\n\n</think>\n\nIt is "
    assert read(chat, "so") == ("It is so", "")
