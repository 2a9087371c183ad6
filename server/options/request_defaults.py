"""What a request that does not say otherwise gets. A part of Settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from gguf_serve.engine.grammar.constraint import Constraint
from gguf_serve.engine.option import OR_ALL, TEXT, Choice, Parsed, option, switch
from gguf_serve.engine.option_values import one
from gguf_serve.engine.options import CONTEXT
from gguf_serve.engine.sampling_params import GROUP, SamplingParams

CHAT = "Chat"
FORMATS = Choice(("none", "auto", "deepseek", "deepseek-legacy"))


def thinks(text: str) -> bool | None:
    try:
        return None if text == "auto" else switch(text)
    except ValueError:
        raise ValueError(f"{text!r} is none of on, off and auto") from None


def effort(text: str) -> str | None:
    return None if text == "default" else text


# fmt: off
@dataclass(frozen=True, slots=True)
class Defaults:
    """From the command line; what has no flags is made of several options (configure.py)."""

    sampling: SamplingParams = field(default_factory=SamplingParams)
    max_tokens: int = option(
        "-n", "--predict", "--n-predict", group=CONTEXT, env="N_PREDICT", type=OR_ALL, default=-1,
        help="tokens to generate at most; -1: no limit",
    )
    cache_prompt: bool = option(
        "--cache-prompt/--no-cache-prompt", group=CONTEXT, env="CACHE_PROMPT", default=True,
        help="keep prompts, so that a common beginning is computed once",
    )
    n_keep: int = option(
        "--keep", group=CONTEXT, type=OR_ALL, default=0,
        help="tokens of the prompt that a shift of the context keeps; -1: all",
    )
    stop: tuple[str, ...] = option(
        "-r", "--reverse-prompt", group=GROUP, type=Parsed("TEXT", one), multiple=True, default=(),
        help="stop at this text unless the request names its own; repeatable",
    )
    special: bool = option(
        "-sp", "--special", group=GROUP, default=False, help="show special tokens in the text",
    )
    constraint: Constraint | None = None
    prefill_assistant: bool = option(
        "--prefill-assistant/--no-prefill-assistant", group=CHAT, env="PREFILL_ASSISTANT",
        default=True, help="continue an assistant message at the end of a conversation",
    )
    unmarked_tool_calls: bool = option(
        "--unmarked-tool-calls/--no-unmarked-tool-calls", group=CHAT,
        env="GGUF_SERVE_UNMARKED_TOOL_CALLS", default=True,
        help="an answer that is nothing but JSON, bare or in a code fence, with the name of a tool "
        "and arguments that fit it is a call",
    )
    template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    spm_infill: bool = option(
        "--spm-infill", group=CHAT, default=False,
        help="fill in with the suffix before the prefix, as some models have been trained",
    )
    skip_chat_parsing: bool = option(
        "--skip-chat-parsing/--no-skip-chat-parsing", group=CHAT, env="SKIP_CHAT_PARSING",
        default=False, help="leave reasoning and tool calls in the text as the model writes them",
    )
    thinks: bool | None = option(
        "-rea", "--reasoning", group=CHAT, env="REASONING", type=Parsed("on|off|auto", thinks),
        default=None,
        help="whether templates that can be told let the model think; auto: as they do it",
    )
    reasoning_format: Literal["none", "auto", "deepseek", "deepseek-legacy"] = option(
        "--reasoning-format", group=CHAT, env="THINK", type=FORMATS, default="auto",
        help="where reasoning goes: none: into content; else into reasoning_content",
    )
    reasoning_effort: str | None = option(
        "--reasoning-effort", group=CHAT, env="REASONING_EFFORT",
        type=Parsed("LEVEL", effort), default=None,
        help="effort that the template is told, such as low; none: no thinking, default: its own",
    )
    reasoning_budget: int = option(
        "--reasoning-budget", group=CHAT, env="THINK_BUDGET", type=OR_ALL, default=-1,
        help="tokens of reasoning before its end is forced; -1: no limit",
    )
    reasoning_budget_message: str = option(
        "--reasoning-budget-message", group=CHAT, env="THINK_BUDGET_MESSAGE", type=TEXT,
        default="", help="text that is written before a forced end",
    )
# fmt: on
