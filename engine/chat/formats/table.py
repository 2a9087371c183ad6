"""Which layout a chat template has, found by texts that only such templates hold."""

from __future__ import annotations

import functools
from dataclasses import replace

from engine.chat.formats.bare_calls import read_bare
from engine.chat.formats.channels import HARMONY, MUSE
from engine.chat.formats.json_calls import JsonCalls
from engine.chat.formats.literal_calls import GemmaCalls, PythonCalls
from engine.chat.formats.minimax_m3 import MinimaxM3Calls
from engine.chat.formats.named_calls import NamedCalls
from engine.chat.formats.param_calls import ParamCalls
from engine.chat.formats.recipients import OPENING, read_recipients
from engine.chat.layout import Layout, Thinking

THINK = Thinking("<think>", ("</think>",))
MISTRAL_THINK = Thinking("[THINK]", ("[/THINK]",))
COHERE_THINK = Thinking("<|START_THINKING|>", ("<|END_THINKING|>",))

HERMES = Layout(
    "hermes", JsonCalls("<tool_call>", "</tool_call>"), tokens=("<tool_call>", "</tool_call>")
)

_QWEN_PARAMS = ParamCalls(
    start="<function=",
    name_end=">",
    parameter="<parameter=",
    key_end=">",
    value_end="</parameter>",
    end="</function>",
    section=("<tool_call>", "</tool_call>"),
    in_lines=True,
)
_GLM_PARAMS = ParamCalls(
    start="<tool_call>",
    name_end="",
    parameter="<arg_key>",
    key_end="</arg_key>",
    value_start="<arg_value>",
    value_end="</arg_value>",
    end="</tool_call>",
)
_GLM_TOKENS = (
    "<tool_call>",
    "</tool_call>",
    "<arg_key>",
    "</arg_key>",
    "<arg_value>",
    "</arg_value>",
)
_DSML_PARAMS = ParamCalls(
    start='<｜DSML｜invoke name="',
    name_end='"',
    parameter='<｜DSML｜parameter name="',
    key_end='"',
    tag_end=">",
    value_end="</｜DSML｜parameter>",
    end="</｜DSML｜invoke>",
)
_DEEPSEEK_SECTION = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_DEEPSEEK_TOKENS = (*_DEEPSEEK_SECTION, "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")
_LFM_TOKENS = ("<|tool_call_start|>", "<|tool_call_end|>", "<think>", "</think>")


def _dsml(section: str) -> Layout:
    marks = (f"<｜DSML｜{section}>", f"</｜DSML｜{section}>")
    return Layout(
        "deepseek-dsml",
        replace(_DSML_PARAMS, section=marks),
        Thinking("<think>", ("</think>", marks[0])),
        tokens=("｜DSML｜", "<think>", "</think>"),
    )


# (texts that the template's source holds, its layout); the first row that fits counts.
ROWS: tuple[tuple[tuple[str, ...], Layout], ...] = (
    (
        ("<|channel|>analysis<|message|>",),
        Layout(
            "harmony",
            read=HARMONY,
            thinking=Thinking("<|channel|>analysis<|message|>", ("<|end|>",)),
            opening="<|start|>assistant",
            tokens=("<|channel|>", "<|constrain|>", "<|message|>", "<|start|>", "<|end|>"),
        ),
    ),
    (
        ("<atem:function_calls>",),
        Layout(
            "muse",
            read=MUSE,
            opening="<|start|>assistant",
            tokens=(
                *("<|start|>", "<|message|>", "<|eom|>", "<|eot|>"),
                *("<atem:function_calls>", "</atem:function_calls>", "<atem:invoke"),
                *("</atem:invoke>", "<atem:parameter", "</atem:parameter>"),
            ),
        ),
    ),
    (
        ("<|open|>", "<|close|>", "<|sep|>"),
        Layout(
            "kimi-k3",
            ParamCalls(
                start='<|open|>call tool="',
                name_end='"',
                parameter='<|open|>argument key="',
                key_end='"',
                tag_end="<|sep|>",
                value_end="<|close|>argument<|sep|>",
                end="<|close|>call<|sep|>",
                section=("<|open|>tools<|sep|>", "<|close|>tools<|sep|>"),
            ),
            Thinking("<|open|>think<|sep|>", ("<|close|>think<|sep|>",)),
            dropped=(
                *("<|open|>response<|sep|>", "<|close|>response<|sep|>"),
                *("<|close|>message<|sep|>", "<|end_of_msg|>"),
            ),
            ends_thinking=("<|open|>response<|sep|>", "<|open|>tools<|sep|>"),
            tokens=("<|open|>", "<|close|>", "<|sep|>", "<|end_of_msg|>"),
        ),
    ),
    (
        ("]<]minimax[>[",),
        Layout(
            "minimax-m3",
            MinimaxM3Calls(),
            Thinking("<mm:think>", ("</mm:think>",)),
            tokens=("]<]minimax[>[", "<tool_call>", "</tool_call>", "<mm:think>", "</mm:think>"),
        ),
    ),
    (
        ("<minimax:tool_call>",),
        Layout(
            "minimax-m2",
            ParamCalls(
                start='<invoke name="',
                name_end='"',
                parameter='<parameter name="',
                key_end='"',
                tag_end=">",
                value_end="</parameter>",
                end="</invoke>",
                section=("<minimax:tool_call>", "</minimax:tool_call>"),
            ),
            tokens=(
                *("<minimax:tool_call>", "</minimax:tool_call>", '<invoke name="', '">'),
                *("</invoke>", '<parameter name="', "</parameter>"),
            ),
        ),
    ),
    (
        ("<|tool_call>", "<|channel>"),
        Layout(
            "gemma-4",
            GemmaCalls("<|tool_call>", "<tool_call|>"),
            Thinking("<|channel>thought", ("<channel|>",)),
            dropped=("<channel|>",),
            thinks_anywhere=True,
            tokens=("<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|turn>"),
        ),
    ),
    (
        ("<|tool_call_start|>",),
        Layout(
            "lfm-2.5",
            PythonCalls("<|tool_call_start|>", "<|tool_call_end|>"),
            THINK,
            tokens=_LFM_TOKENS,
        ),
    ),
    (
        ("List of tools: [", "keep_past_thinking"),
        Layout(
            "lfm-2.5",
            PythonCalls("<|tool_call_start|>", "<|tool_call_end|>"),
            THINK,
            tokens=_LFM_TOKENS,
        ),
    ),
    (
        ("<|tool_list_start|>",),
        Layout(
            "lfm-2",
            PythonCalls("<|tool_call_start|>", "<|tool_call_end|>"),
            THINK,
            tokens=(*_LFM_TOKENS, "<|tool_list_start|>", "<|tool_list_end|>"),
        ),
    ),
    (
        ("<|tools_prefix|>",),
        Layout(
            "apertus",
            JsonCalls("<|tools_prefix|>", "<|tools_suffix|>", by_name=True),
            tokens=("<|tools_prefix|>", "<|tools_suffix|>"),
        ),
    ),
    (
        ("[BEGIN FINAL RESPONSE]", "<|begin_assistant|>"),
        Layout(
            "apriel-thinker",
            JsonCalls("<tool_calls>", "</tool_calls>"),
            Thinking("<|begin_assistant|>", ("[BEGIN FINAL RESPONSE]",)),
            tokens=(
                *("<|begin_assistant|>", "[BEGIN FINAL RESPONSE]"),
                *("<tool_calls>", "</tool_calls>"),
            ),
        ),
    ),
    (
        ("<seed:tool_call>",),
        Layout(
            "seed",
            replace(
                _QWEN_PARAMS,
                section=("<seed:tool_call>", "</seed:tool_call>"),
                in_lines=False,
            ),
            Thinking("<seed:think>", ("</seed:think>",)),
            tokens=(
                *("<seed:think>", "</seed:think>", "<seed:tool_call>", "</seed:tool_call>"),
                *("<function=", ">", "</function>", "<parameter=", "</parameter>"),
            ),
        ),
    ),
    (
        ("<|START_ACTION|>", "<|START_TEXT|>"),
        Layout(
            "cohere-2",
            JsonCalls(
                "<|START_ACTION|>", "<|END_ACTION|>", "tool_name", "parameters", "tool_call_id"
            ),
            COHERE_THINK,
            dropped=("<|START_TEXT|>", "<|END_TEXT|>"),
            tokens=(
                *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"),
                *("<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|START_THINKING|>", "<|END_THINKING|>"),
                *("<|START_TEXT|>", "<|END_TEXT|>", "<|START_ACTION|>", "<|END_ACTION|>"),
                *("<|START_TOOL_RESULT|>", "<|END_TOOL_RESULT|>"),
            ),
        ),
    ),
    (
        ("<|START_ACTION|>",),
        Layout(
            "command-r7b",
            JsonCalls(
                "<|START_ACTION|>", "<|END_ACTION|>", "tool_name", "parameters", "tool_call_id"
            ),
            COHERE_THINK,
            dropped=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
            tokens=(
                *("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"),
                *("<|END_RESPONSE|>", "<|START_ACTION|>", "<|END_ACTION|>"),
            ),
        ),
    ),
    (
        ("Action:", "```json", '"tool_name"'),
        Layout(
            "command-r",
            JsonCalls("Action:\n```json\n", "```", "tool_name", "parameters", end_is_text=True),
            tokens=("Action:\n```json", "```", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
        ),
    ),
    (
        ("<tool_calls{}>", "':opensource'"),
        Layout(
            "hunyuan-3",
            ParamCalls(
                start="<tool_call:opensource>",
                name_end="<tool_sep:opensource>",
                parameter="<arg_key:opensource>",
                key_end="</arg_key:opensource>",
                value_start="<arg_value:opensource>",
                value_end="</arg_value:opensource>",
                end="</tool_call:opensource>",
                section=("<tool_calls:opensource>", "</tool_calls:opensource>"),
            ),
            Thinking("<think:opensource>", ("</think:opensource>",)),
            tokens=(
                *("<think:opensource>", "</think:opensource>", "<tool_calls:opensource>"),
                *("</tool_calls:opensource>", "<tool_call:opensource>", "<tool_sep:opensource>"),
                *("</tool_call:opensource>", "<arg_key:opensource>", "</arg_key:opensource>"),
                *("<arg_value:opensource>", "</arg_value:opensource>"),
            ),
        ),
    ),
    (
        ("<arg_key>", "<|role_end|>"),
        Layout(
            "ling-3",
            _GLM_PARAMS,
            Thinking("<think>", ("</think>", "<tool_call>")),
            dropped=("<|role_end|>",),
            stops=("<|role_end|>",),
            tokens=("<think>", "</think>", *_GLM_TOKENS, "<|role_end|>"),
        ),
    ),
    (
        ("<arg_key>", "</assistant>"),
        Layout("laguna", _GLM_PARAMS, stops=("</assistant>",), tokens=_GLM_TOKENS),
    ),
    (("<arg_key>",), Layout("glm-4.5", _GLM_PARAMS, tokens=_GLM_TOKENS)),
    (
        ("<|function_call|>",),
        Layout("gigachat-3.1", JsonCalls("<|function_call|>"), tokens=("<|function_call|>",)),
    ),
    (
        ("<|message_sep|>", "<|role_sep|>"),
        Layout(
            "gigachat-3",
            JsonCalls("<|message_sep|>\n\nfunction call<|role_sep|>\n"),
            tokens=("<|message_sep|>\n\n", "<|role_sep|>\n"),
        ),
    ),
    (
        ("<|tool_calls_section_begin|>",),
        Layout(
            "kimi-k2",
            NamedCalls(
                "<|tool_call_begin|>",
                "{id}<|tool_call_argument_begin|>",
                "<|tool_call_end|>",
                ("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
            ),
            THINK,
            tokens=(
                *("<|tool_calls_section_begin|>", "<|tool_calls_section_end|>"),
                *("<|tool_call_begin|>", "<|tool_call_argument_begin|>", "<|tool_call_end|>"),
                *("<think>", "</think>"),
            ),
        ),
    ),
    (
        ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"),
        Layout(
            "mistral-v11",
            NamedCalls("[TOOL_CALLS]", "{name}[CALL_ID]{id}[ARGS]"),
            tokens=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
        ),
    ),
    (
        ("[TOOL_CALLS]", "[ARGS]"),
        Layout(
            "mistral-v13",
            NamedCalls("[TOOL_CALLS]", "{name}[ARGS]"),
            MISTRAL_THINK,
            tokens=("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]"),
        ),
    ),
    (
        ("[TOOL_CALLS]",),
        Layout("mistral-v3", JsonCalls("[TOOL_CALLS]", id="id"), tokens=("[TOOL_CALLS]",)),
    ),
    (
        ("<TOOLCALL>",),
        Layout(
            "nemotron-2",
            JsonCalls("<TOOLCALL>", "</TOOLCALL>"),
            tokens=("<SPECIAL_11>", "</think>", "<TOOLCALL>", "</TOOLCALL>"),
            thinking=THINK,
        ),
    ),
    (("｜DSML｜", "function_calls"), _dsml("function_calls")),
    (("｜DSML｜",), _dsml("tool_calls")),
    (
        ("<｜tool▁call▁begin｜>", "```json"),
        Layout(
            "deepseek-r1",
            NamedCalls(
                "<｜tool▁call▁begin｜>",
                "function<｜tool▁sep｜>{name}\n```json\n",
                "```<｜tool▁call▁end｜>",
                _DEEPSEEK_SECTION,
            ),
            THINK,
            tokens=("<think>", "</think>", *_DEEPSEEK_TOKENS, "<｜tool▁sep｜>"),
        ),
    ),
    (
        ("<｜tool▁call▁begin｜>",),
        Layout(
            "deepseek-v3.1",
            NamedCalls(
                "<｜tool▁call▁begin｜>",
                "{name}<｜tool▁sep｜>",
                "<｜tool▁call▁end｜>",
                _DEEPSEEK_SECTION,
            ),
            THINK,
            tokens=("<think>", "</think>", *_DEEPSEEK_TOKENS, "<｜tool▁sep｜>"),
        ),
    ),
    (
        ("<|tool_call:begin|>",),
        Layout(
            "solar",
            NamedCalls(
                "<|tool_call:begin|>",
                "{id}<|tool_call:name|>{name}<|tool_call:args|>",
                "<|tool_call:end|>",
                ("<|tool_calls|>", "<|calls|>"),
            ),
            tokens=(
                *("<|content|>", "<|end|>", "<|tool_calls|>", "<|calls|>", "<|tool_call:begin|>"),
                *("<|tool_call:end|>", "<|tool_call:name|>", "<|tool_call:args|>"),
            ),
            dropped=("<|content|>", "<|end|>"),
        ),
    ),
    (
        ("<function name=", "<param name="),
        Layout(
            "minicpm",
            ParamCalls(
                start='<function name="',
                name_end='"',
                parameter='<param name="',
                key_end='"',
                tag_end=">",
                value_end="</param>",
                end="</function>",
            ),
            tokens=("<function", "<param", "</function>", "</param>"),
        ),
    ),
    (
        ("<function=", "<parameter=", "</think>"),
        Layout(
            "qwen-3.5",
            _QWEN_PARAMS,
            Thinking("<think>", ("\n</think>", "</think>", "<tool_call>")),
            tokens=("<tool_call>", "</tool_call>", "<think>", "</think>"),
        ),
    ),
    (
        ("<function=", "<parameter="),
        Layout("qwen-3-coder", _QWEN_PARAMS, tokens=("<tool_call>", "</tool_call>")),
    ),
    (
        ("<function=",),
        Layout(
            "functionary-3.1",
            NamedCalls("<function=", "{name}>", "</function>"),
            tokens=("<|eot_id|>", "<|eom_id|>", "<function=", ">", "</function>"),
        ),
    ),
    (
        (">>>all",),
        Layout("functionary-3.2", read=read_recipients, opening=OPENING, tokens=(">>>all",)),
    ),
    ((" functools[",), Layout("firefunction", JsonCalls("functools"), tokens=("functools",))),
    (
        ("<tool_calls>[",),
        Layout(
            "apriel",
            JsonCalls("<tool_calls>", "</tool_calls>"),
            tokens=("<tool_calls>", "</tool_calls>"),
        ),
    ),
    (
        ("<tool_calls>",),
        Layout(
            "minimax-m1",
            JsonCalls("<tool_calls>", "</tool_calls>"),
            tokens=("<tool_calls>", "</tool_calls>"),
        ),
    ),
    (
        ("<|tool_call|>",),
        Layout(
            "granite-3",
            JsonCalls("<|tool_call|>"),
            dropped=("<response>", "</response>"),
            tokens=("<|tool_call|>", "<response>", "</response>"),
        ),
    ),
    (('"parameters": dictionary of argument name',), Layout("llama-3", read=read_bare)),
    (("<tool_call>",), HERMES),
)
# What has no calls of its own may still write those that most models have learned.
FALLBACK = replace(HERMES, name="none", tokens=())


@functools.lru_cache(maxsize=64)
def layout_of(source: str) -> Layout:
    """The layout of a template; ``<think>`` is known wherever its end is mentioned."""
    layout = next(
        (layout for texts, layout in ROWS if all(text in source for text in texts)), FALLBACK
    )
    if layout.thinking is None and "</think>" in source:
        return replace(layout, thinking=THINK, tokens=("<think>", "</think>", *layout.tokens))
    return layout
