import json

import pytest
from reading import drive

from gguf_serve.engine.chat.json_text import json_value, string_value
from gguf_serve.engine.chat.scanner import MalformedError, Scanner


def read(text: str, step: int) -> str:
    scanner, sent = Scanner(), []
    pieces = (text[i : i + step] for i in range(0, len(text), step))
    drive(scanner, json_value(scanner, sent.append), *pieces)
    return "".join(sent)


@pytest.mark.parametrize("step", [1, 2, 1000])
@pytest.mark.parametrize(
    "text",
    [
        '{"a": [1, -2.5e3, {"b" : "x\\"y\\u00e9"}], "c":null , "d": {} , "e": [ ]}',
        '"\\\\"',
        "[ [], [ [0] ] ]",
        "-0.5",
        "true",
        '{"\\"": "格"}',
    ],
)
def test_a_value_passes_as_it_is_written(text, step):
    assert read(text, step) == text
    assert json.loads(text) == json.loads(read(text, step))


def test_the_value_ends_where_it_is_complete():
    scanner, sent = Scanner(), []
    drive(scanner, json_value(scanner, sent.append), ' {"a": 1', "}</tool_call>")
    assert "".join(sent) == '{"a": 1}'
    assert scanner.text[scanner.pos :] == "</tool_call>"


@pytest.mark.parametrize(
    "text",
    [
        *["", "{", "[1", '"a', "{a: 1}", "[1 2]", '{"a" 1}', '{"a": }', "[,]", "01", "1.", "nul"],
        *["x", "{'a': 1}", '{"a": 1,}', "[1,]", "[" * 100_000],
    ],
)
@pytest.mark.parametrize("step", [1, 100_000])
def test_what_is_no_json_is_refused(text, step):
    with pytest.raises(MalformedError):
        read(text, step)


def test_what_models_write_into_strings_is_mended():
    assert json.loads(read('"a\nb\tc \\d \\\'"', 1)) == "a\nb\tc \\d \\'"


def test_string_value():
    scanner = Scanner()
    assert drive(scanner, string_value(scanner), '"a\\n', '\\u00e9"') == "a\né"
