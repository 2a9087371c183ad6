"""What the answer of one request must look like: calls of its tools, or JSON by its schema."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from typing import Any

from gguf_serve.engine.chat.lark import Lark, maybe, one_of, sequence
from gguf_serve.engine.chat.layout import CallGrammar, Layout, Turn
from gguf_serve.engine.grammar.constraint import Constraint, Kind, Trigger

_MAX_PREAMBLE = 400  # characters that a thinking model may say before a call that must come


def output_constraint(
    turn: Turn,
    generation_prompt: str,
    *,
    is_required: bool,
    is_parallel: bool,
    json_schema: Mapping[str, Any] | None,
    strict: Collection[str],
) -> Constraint | None:
    """None where all text may come.

    Calls that are wanted hold from where they begin; calls that are required, and JSON, for
    all of the answer after the reasoning.
    """
    layout, tools = turn.layout, turn.tools
    calls = layout.calls or layout.syntax
    lark = Lark(strict)
    triggers: tuple[Trigger, ...] = ()
    if tools and calls and is_required:
        preamble = _preamble(lark, turn, calls, generation_prompt)
        form = _calls(lark, turn, calls, is_parallel)
        start = sequence(lark.space, layout.before_calls, preamble, form)
    elif tools and calls and json_schema is None:
        triggers = tuple(_everywhere(turn, trigger) for trigger in calls.triggers(tools))
        start = _calls(lark, turn, calls, is_parallel)
        if not triggers:
            return None
    elif json_schema is not None and not tools and not any(layout.answer):
        return _constraint(turn, generation_prompt, json.dumps(json_schema), "json_schema")
    elif json_schema is not None:
        forms = [_answer(lark, layout, json_schema)]
        if tools and calls:
            forms.append(_calls(lark, turn, calls, is_parallel))
        start = sequence(lark.space, layout.before_calls, one_of(forms))
    else:
        return None
    return _constraint(turn, generation_prompt, lark.grammar(start), "lark", triggers)


def _constraint(
    turn: Turn, prefix: str, text: str, kind: Kind, triggers: tuple[Trigger, ...] = ()
) -> Constraint:
    return Constraint(
        kind,
        text,
        triggers,
        reasoning=_tags(turn),
        prefix=prefix,
        preserved=turn.layout.tokens,
    )


def _everywhere(turn: Turn, trigger: Trigger) -> Trigger:
    """A word that ends the thinking is looked for inside of it, as only patterns are."""
    _, after = turn.thinking_ends()
    return Trigger(re.escape(trigger.text), True) if trigger.text in after else trigger


def _calls(lark: Lark, turn: Turn, calls: CallGrammar, is_parallel: bool) -> str:
    form = calls.grammar(lark, turn.tools, is_parallel)
    return sequence(form, turn.layout.after_calls or lark.space)


def _answer(lark: Lark, layout: Layout, schema: Mapping[str, Any]) -> str:
    """JSON with what the layout has around an answer."""
    before, after = layout.answer
    return sequence(before, lark.schema(schema), lark.space, maybe(after), layout.after_calls)


def _preamble(lark: Lark, turn: Turn, calls: CallGrammar, generation_prompt: str) -> str:
    triggers = calls.triggers(turn.tools)
    thinking = turn.layout.thinking
    if thinking is None or not triggers or triggers[0].is_pattern:
        return ""
    is_open = generation_prompt.rfind(thinking.start) > max(
        map(generation_prompt.rfind, thinking.ends)
    )
    first = re.escape(triggers[0].text[0])
    return lark.rule(f"/[^{first}]{{0,{_MAX_PREAMBLE}}}/") if is_open else ""


def _tags(turn: Turn) -> tuple[str, str] | None:
    """The tags of the reasoning; of several ends the one that is in all of them."""
    closing, _ = turn.thinking_ends()
    thinking = turn.layout.thinking
    return (thinking.start, min(closing, key=len)) if thinking and closing else None
