import pytest
from reading import drive

from gguf_serve.engine.chat.delta import ChatDelta, ToolCallDelta
from gguf_serve.engine.chat.scanner import (
    MalformedError,
    Scanner,
    accept,
    enclosed,
    marks,
    skip_space,
    until,
)


@pytest.mark.parametrize("pieces", [("ab<x>c",), ("a", "b", "<", "x", ">", "c"), ("ab<", "x>c")])
def test_until_sends_text_and_no_part_of_the_stop(pieces):
    scanner, sent = Scanner(), []
    assert drive(scanner, until(scanner, marks("<x>", "<yy>"), sent.append), *pieces) == "<x>"
    assert "".join(sent) == "ab"
    assert scanner.text[scanner.pos :] in ("", "c")


def test_until_holds_back_no_more_than_a_beginning():
    scanner, sent = Scanner(), []
    reader = until(scanner, marks("<tool_call>"), sent.append)
    next(reader)
    for piece, so_far in (("2 < 3", "2 < 3"), (" <tool", "2 < 3 "), ("_box", "2 < 3 <tool_box")):
        scanner.feed(piece)
        next(reader)
        assert "".join(sent) == so_far


def test_until_without_stops_and_at_the_end():
    scanner, sent = Scanner(), []
    assert drive(scanner, until(scanner, marks(), sent.append), "a<", "b") is None
    assert "".join(sent) == "a<b"
    scanner = Scanner()
    assert drive(scanner, until(scanner, marks("<x>"), sent.append), "c<x") is None
    assert "".join(sent) == "a<bc<x"


@pytest.mark.parametrize(
    ("text", "expected"), [("<a>t", "<a>"), ("<b>", "<b>"), ("<c>", None), ("", None), ("<a", None)]
)
def test_accept(text, expected):
    scanner = Scanner()
    assert drive(scanner, accept(scanner, marks("<a>", "<b>")), *text) == expected


def test_space_and_enclosed_text():
    scanner = Scanner()
    assert drive(scanner, skip_space(scanner), " ", "\n", "x") == " \n"
    scanner = Scanner()
    assert drive(scanner, enclosed(scanner, marks(">")), "na", "me>") == "name"
    scanner = Scanner()
    with pytest.raises(MalformedError):
        drive(scanner, enclosed(scanner, marks(">")), "name")


def test_a_delta_joins_what_came_since_the_last():
    scanner = Scanner()
    scanner.content("a")
    scanner.content("b")
    scanner.begin_call("f", "1")
    scanner.arguments("{")
    scanner.arguments("}")
    assert scanner.take() == ChatDelta("ab", "", (ToolCallDelta(0, "1", "f", "{}"),))
    assert not scanner.take()
    scanner.begin_call("g")
    assert scanner.take().calls == (ToolCallDelta(1, "", "g"),)


def test_read_text_is_dropped_unless_kept():
    scanner = Scanner()
    scanner.feed("abc")
    scanner.pos = 2
    scanner.feed("d")
    assert (scanner.text, scanner.pos) == ("cd", 0)
    scanner.kept, scanner.pos = 1, 2
    scanner.feed("e")
    assert (scanner.text, scanner.kept, scanner.pos) == ("de", 0, 1)
