"""Each family's way, on sources that hold nothing but the text it is recognized by."""

from gguf_serve.engine.chat.rendering.families import complete, prepare, variables

PLAIN = "{{ messages }}"
DEEPSEEK_V4 = "{{ dsml_token + 'tool_calls>' }}"
GEMMA4 = "<|tool_response>"


def calls(*ids: str) -> dict[str, object]:
    made = [{"id": i, "function": {"name": f"f-{i}", "arguments": {}}} for i in ids]
    return {"role": "assistant", "content": "text", "tool_calls": made}


def result(call_id: str | None, content: str = "r") -> dict[str, object]:
    message = {"role": "tool", "content": content}
    return message if call_id is None else {**message, "tool_call_id": call_id}


def test_other_templates_get_the_messages_as_they_are():
    messages = [calls("a"), result("a")]
    assert prepare(PLAIN, messages) is messages
    assert variables(PLAIN, {"type": "object"}) == {}
    assert complete(PLAIN, "x<turn|>\n") == "x<turn|>\n"


def test_stepfun_trims():
    message = {"role": "assistant", "content": " a ", "reasoning_content": "\nb\n"}
    typed = {"role": "user", "content": [{"type": "text", "text": "c "}]}
    assert prepare("<im_patch>", [message, typed]) == [
        {"role": "assistant", "content": "a", "reasoning_content": "b"},
        {"role": "user", "content": [{"type": "text", "text": "c"}]},
    ]


def test_deepseek_v4_sorts_results_into_the_order_of_the_calls():
    first, second = calls("a", "b"), calls("c", "d")
    messages = [first, result("b"), result("a"), second, result("d"), result("c")]
    ordered = prepare(DEEPSEEK_V4, messages)
    assert [m.get("tool_call_id") for m in ordered] == [None, "a", "b", None, "c", "d"]
    unknown = [first, result(None, "1"), result(None, "2")]
    assert prepare(DEEPSEEK_V4, unknown) == unknown


def test_deepseek_v4_shows_the_schema():
    assert variables(DEEPSEEK_V4, {"const": 1}) == {"response_format": {"const": 1}}
    assert variables(DEEPSEEK_V4, None) == {}


def test_gemma4_results_and_answer_join_the_turn_of_the_calls():
    answer = {"role": "assistant", "content": "done"}
    messages = [calls("a", "b"), result("a", '{"t": 1}'), result("b", "sunny"), answer]
    (turn,) = prepare(GEMMA4, messages)
    assert turn["tool_responses"] == [
        {"name": "f-a", "response": {"t": 1}},
        {"name": "f-b", "response": "sunny"},
    ]
    assert turn["content"] == "done"
    assert messages[0]["content"] == "text"


def test_gemma4_further_calls_begin_a_message_of_their_own():
    merged = prepare(GEMMA4, [calls("a"), result("a"), calls("b"), result("b")])
    assert [len(turn["tool_responses"]) for turn in merged] == [1, 1]


def test_gemma4_opens_the_models_turn():
    assert complete(GEMMA4, "x<turn|>\n") == "x<turn|>\n<|turn>model\n"
    assert complete(GEMMA4, "x<turn|>\n<|turn>model\n") == "x<turn|>\n<|turn>model\n"
