"""Where a constraint begins to hold, and what is allowed before, there and after."""

from __future__ import annotations

import pytest
from byte_vocabulary import CONTROL, EOS, N_VOCAB, WORDS, ByteVocabulary, allowed, follow

from gguf_serve.engine.errors import RequestError
from gguf_serve.engine.grammar.compile import Grammars
from gguf_serve.engine.grammar.constraint import Constraint, Trigger
from gguf_serve.engine.grammar.guide import Guide

VOCABULARY = ByteVocabulary()
THINK = ("<think>", "</think>")
SPACE, TOOL, END_THINK, END_BRACE, OPEN = (256 + i for i in (3, 4, 5, 6, 7))


@pytest.fixture(scope="module")
def grammars() -> Grammars:
    return Grammars(VOCABULARY, N_VOCAB)


def spell(*parts: str | int) -> list[int]:
    return VOCABULARY.spell(*parts)


def is_free(guide: Guide) -> bool:
    return allowed(guide) == set(range(CONTROL + 1))


def test_from_the_first_token_on(grammars: Grammars) -> None:
    guide = Guide(Constraint("regex", "a[bc]|true"), grammars)
    assert allowed(guide) == {*b"at", WORDS.index(b"true") + 256}
    follow(guide, spell("ab"))
    assert allowed(guide) == {EOS}
    follow(guide, [EOS])


def test_schema(grammars: Grammars) -> None:
    schema = '{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}'
    guide = Guide(Constraint("json_schema", schema), grammars)
    follow(guide, [257, *spell("a"), 258, 256, *spell(" }")])
    assert EOS in allowed(guide)


def test_control_tokens_are_text_only_if_preserved(grammars: Grammars) -> None:
    for preserved in ((), ("<|call|>",)):
        guide = Guide(Constraint("regex", r"<\|call\|>x", preserved=preserved), grammars)
        assert (CONTROL in allowed(guide)) == bool(preserved)
        follow(guide, spell("<|call|>x") if not preserved else [CONTROL, *spell("x")])
    guide = Guide(Constraint("lark", 'start: <|call|> "x"'), grammars)
    assert allowed(guide) == {CONTROL}


def test_white_space_has_an_end(grammars: Grammars) -> None:
    guide = Guide(Constraint("json_schema", "{}"), grammars)
    follow(guide, spell("[" + "\n" + " " * 63))
    assert not allowed(guide) & set(spell(" \n\t"))


class TestTriggers:
    CALL = r'<tool>\n\{"a": [0-9]+\}'
    WORD = (Trigger("<tool>"),)

    def test_free_before_and_bound_after(self, grammars: Grammars) -> None:
        guide = Guide(Constraint("regex", self.CALL, self.WORD), grammars)
        follow(guide, spell("I call <too"))
        assert is_free(guide)
        follow(guide, spell("l>"))
        assert allowed(guide) == {ord("\n")}
        follow(guide, spell('\n{"a": 12}'))
        assert allowed(guide) == {EOS}

    def test_a_token_with_the_word_and_more(self, grammars: Grammars) -> None:
        guide = Guide(Constraint("regex", self.CALL, self.WORD), grammars)
        follow(guide, spell("x", TOOL))
        assert allowed(guide) == {ord('"')}

    def test_text_that_the_grammar_does_not_take_stays_free(self, grammars: Grammars) -> None:
        guide = Guide(Constraint("regex", "<tool>\nx", self.WORD), grammars)
        follow(guide, spell("a", TOOL, "b"))
        assert is_free(guide)
        follow(guide, spell("<tool>"))
        assert allowed(guide) == {ord("\n")}

    def test_in_the_prefix(self, grammars: Grammars) -> None:
        guide = Guide(Constraint("regex", self.CALL, self.WORD, prefix=" <tool>\n"), grammars)
        assert allowed(guide) == {ord("{")}

    def test_across_prefix_and_output(self, grammars: Grammars) -> None:
        guide = Guide(Constraint("regex", self.CALL, self.WORD, prefix=" <to"), grammars)
        follow(guide, spell("ol>"))
        assert allowed(guide) == {ord("\n")}

    def test_a_pattern_begins_at_its_group(self, grammars: Grammars) -> None:
        trigger = Trigger(r"^\s*(?:hm\. )?(\{)", is_pattern=True)
        guide = Guide(Constraint("regex", r"\{x\}", (trigger,)), grammars)
        follow(guide, spell(" hm. {"))
        assert allowed(guide) == {ord("x")}

    def test_the_first_of_several(self, grammars: Grammars) -> None:
        triggers = (Trigger("[B]"), Trigger("[A]"))
        guide = Guide(Constraint("regex", r"\[A\]x|\[B\]y", triggers), grammars)
        follow(guide, spell("[A]"))
        assert allowed(guide) == {ord("x")}

    def test_words_in_reasoning_do_not_count(self, grammars: Grammars) -> None:
        for prefix, begin in (("<think>", []), ("", [OPEN]), ("", spell("<think>"))):
            constraint = Constraint("regex", self.CALL, self.WORD, THINK, prefix)
            guide = Guide(constraint, grammars)
            follow(guide, [*begin, *spell("maybe <tool>\n?")])
            assert is_free(guide)
            follow(guide, spell("</think> <tool>"))
            assert allowed(guide) == {ord("\n")}

    def test_patterns_in_reasoning_do(self, grammars: Grammars) -> None:
        trigger = Trigger("<tool>", is_pattern=True)
        constraint = Constraint("regex", self.CALL, (trigger,), THINK, "<think>")
        guide = Guide(constraint, grammars)
        follow(guide, spell("so <tool>"))
        assert allowed(guide) == {ord("\n")}


class TestReasoning:
    SCHEMA = '{"type": "object", "additionalProperties": false}'

    def guide(self, grammars: Grammars, prefix: str, start: str = "<think>") -> Guide:
        constraint = Constraint(
            "json_schema", self.SCHEMA, reasoning=(start, "</think>"), prefix=prefix
        )
        return Guide(constraint, grammars)

    @pytest.mark.parametrize(("prefix", "start"), [("user <think>\n", "<think>"), ("", "")])
    def test_open_from_the_beginning(self, grammars: Grammars, prefix: str, start: str) -> None:
        guide = self.guide(grammars, prefix, start)
        assert allowed(guide) >= set(range(CONTROL + 1)) - {EOS}
        assert EOS not in allowed(guide)
        follow(guide, spell("free { text </think", ">"))
        assert allowed(guide) == {*b"{\n", SPACE}
        follow(guide, [SPACE])
        assert allowed(guide) == {ord("{")}
        follow(guide, spell("{}"))
        assert allowed(guide) == {EOS}

    def test_the_model_may_open_it_or_not(self, grammars: Grammars) -> None:
        guide = self.guide(grammars, "assistant: ")
        assert allowed(guide) == {ord("{"), OPEN}
        follow(guide, spell("{}"))
        guide = self.guide(grammars, "")
        follow(guide, spell(OPEN, "a </think>{}"))
        assert allowed(guide) == {EOS}

    def test_a_start_tag_of_several_tokens_is_finished(self, grammars: Grammars) -> None:
        guide = self.guide(grammars, "", "[T]")
        follow(guide, spell("["))
        assert allowed(guide) == {ord("T")}
        follow(guide, spell("T] x </think>{}"))

    def test_closed_by_the_prompt(self, grammars: Grammars) -> None:
        guide = self.guide(grammars, "<think>\n\n</think>\n\n")
        assert allowed(guide) == {ord("{")}

    def test_an_end_tag_inside_of_a_token(self, grammars: Grammars) -> None:
        guide = self.guide(grammars, "<think>")
        follow(guide, [END_THINK])
        assert ord("{") in allowed(guide)
        guide = self.guide(grammars, "<think>")
        follow(guide, spell("x", END_BRACE))
        assert allowed(guide) >= {ord("}")}
        follow(guide, spell("}"))


def test_a_grammar_that_fails_says_so(grammars: Grammars) -> None:
    """With the next token: by then another thread has told the matcher of this one."""
    guide = Guide(Constraint("regex", "a+"), grammars)
    guide.accept(ord("b"))
    allowed(guide)
    with pytest.raises(RequestError, match="the grammar has failed"):
        guide.accept(ord("a"))
