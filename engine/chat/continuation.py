"""Prompts that end inside the assistant's last message, for the model to go on from there.

The message is rendered with marks for its reasoning and its content; everything after the
mark is cut and the mark replaced, so that white space that the template would trim
survives. Reasoning that the template does not show is written between the tags of the
model's own thinking, as llama-server does.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from gguf_serve.engine.chat.caps import Caps, Message, with_reasoning
from gguf_serve.engine.errors import RequestError

Continuation = bool | Literal["content", "reasoning_content"]

# Private-use characters: no template trims, splits or escapes them.
_CONTENT = "\ue0c0content\ue0c1"
_REASONING = "\ue0c0reasoning\ue0c1"
# (a text that only the templates of such models hold, start tag, end tag)
_TAGS = (
    ("<SPECIAL_11>", "<think>\n", "</think>"),  # Nemotron-Nano-v2
    ("</think>", "<think>", "</think>"),
    ("[/THINK]", "[THINK]", "[/THINK]"),
    ("<|END_THINKING|>", "<|START_THINKING|>", "<|END_THINKING|>"),
    ("<channel|>", "<|channel>thought\n", "<channel|>"),
    ("<|tool_calls_section_begin|>", "<think>", "</think>"),  # Kimi-K2
    ("<|tool_list_start|>", "<think>", "</think>"),  # LFM2
)


def continued_field(
    messages: Sequence[Mapping[str, Any]], mode: Continuation
) -> Literal["content", "reasoning_content"]:
    """What of the last message the model goes on with; RequestError if it cannot."""
    role = messages[-1].get("role") if messages else None
    if role != "assistant":
        raise RequestError(
            f"continue_final_message: the last message is of the role {role!r}, expected assistant"
        )
    if len(messages) > 1 and messages[-2].get("role") == "assistant":
        raise RequestError("Cannot have 2 or more assistant messages at the end of the list.")
    if not isinstance(mode, bool):
        return mode
    last = messages[-1]
    only_thought = last.get("reasoning_content") and not last.get("content")
    return "reasoning_content" if only_thought else "content"


def render_continued(
    render: Callable[[list[Message], bool], str],
    source: str,
    caps: Caps,
    messages: list[Message],
    texts: tuple[str | None, str],
    field: Literal["content", "reasoning_content"],
) -> str:
    """The prompt up to the end of ``field``.

    ``render`` takes messages and add_generation_prompt; ``texts`` are the last message's
    reasoning and content as the client sent them.
    """
    reasoning, content = texts[0] or "", texts[1]
    last = {**messages[-1], "content": _CONTENT}
    opening = render(messages[:-1], True)
    if caps.reasoning_field:
        text = render(
            [*messages[:-1], with_reasoning(last, _REASONING, caps.reasoning_field)], False
        )
        if _REASONING in text and _CONTENT in text:
            return _cut(text, opening, reasoning, content, field)
    tags = _thinking_tags(source)
    if tags is None:
        # Functionary lets the model choose a recipient; text goes to "all".
        opening += "all\n" if opening.endswith(">>>") else ""
        return opening + (content if field == "content" else "")
    if opening.rstrip().endswith(tags[1].rstrip()):  # thinking is off: it is closed already
        if field == "content" and not reasoning:
            return opening + content
        opening = opening[: opening.rindex(tags[0].strip())]
    if opening.rstrip().endswith(tags[0].rstrip()):
        opening = opening.rstrip().removesuffix(tags[0].rstrip())
    thought = opening + tags[0] + reasoning
    return thought if field == "reasoning_content" else thought + tags[1] + content


def _thinking_tags(source: str) -> tuple[str, str] | None:
    if "[ARGS]" in source and "[CALL_ID]" not in source:  # Mistral's reasoning models
        return "[THINK]", "[/THINK]"
    return next(((start, end) for text, start, end in _TAGS if text in source), None)


def _cut(text: str, opening: str, reasoning: str, content: str, field: str) -> str:
    before, _, after = text.rpartition(_REASONING)
    if before.startswith(opening):
        # What the model itself would write begins right after the generation prompt (GLM).
        before = opening + before.removeprefix(opening).lstrip("\n")
    if field == "reasoning_content":
        return before + reasoning
    between = after.partition(_CONTENT)[0]
    if between == "\n</think>\n":
        between += "\n"  # models write an empty line there, templates of history one less
    return before + reasoning + between + content
