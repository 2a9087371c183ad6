"""The layouts of models whose calls have JSON arguments."""

from __future__ import annotations

from msgspec.structs import replace

from gguf_serve.engine.chat.formats.bare_calls import CALLS, read_bare
from gguf_serve.engine.chat.formats.channels import HARMONY as HARMONY_CHANNELS
from gguf_serve.engine.chat.formats.channels import HarmonyCalls
from gguf_serve.engine.chat.formats.json_calls import JsonCalls
from gguf_serve.engine.chat.formats.named_calls import NamedCalls
from gguf_serve.engine.chat.formats.recipients import OPENING, RecipientCalls, read_recipients
from gguf_serve.engine.chat.layout import Layout, Thinking

THINK = Thinking("<think>", ("</think>",))
MISTRAL_THINK = Thinking("[THINK]", ("[/THINK]",))
COHERE_THINK = Thinking("<|START_THINKING|>", ("<|END_THINKING|>",))
_DEEPSEEK_SECTION = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")
_DEEPSEEK_TOKENS = (*_DEEPSEEK_SECTION, "<｜tool▁call▁begin｜>", "<｜tool▁call▁end｜>")
HERMES = Layout(
    "hermes", JsonCalls("<tool_call>", "</tool_call>"), tokens=("<tool_call>", "</tool_call>")
)
# What has no calls of its own may still write those that most models have learned.
FALLBACK = replace(HERMES, name="none")
HARMONY = Layout(
    "harmony",
    read=HARMONY_CHANNELS,
    calls=HarmonyCalls(),
    answer=('"<|channel|>final" " <|constrain|>json"? "<|message|>"', ""),
    before_calls='"<|start|>assistant"?',
    thinking=Thinking("<|channel|>analysis<|message|>", ("<|end|>",)),
    opening="<|start|>assistant",
    tokens=("<|channel|>", "<|constrain|>", "<|message|>", "<|start|>", "<|end|>"),
)
APERTUS = Layout(
    "apertus",
    JsonCalls("<|tools_prefix|>", "<|tools_suffix|>", framing="list", by_name=True),
    tokens=("<|tools_prefix|>", "<|tools_suffix|>"),
)
APRIEL_THINKER = Layout(
    "apriel-thinker",
    JsonCalls("<tool_calls>", "</tool_calls>", framing="list"),
    Thinking("<|begin_assistant|>", ("[BEGIN FINAL RESPONSE]",)),
    tokens=(
        *("<|begin_assistant|>", "[BEGIN FINAL RESPONSE]"),
        *("<tool_calls>", "</tool_calls>"),
    ),
)
COHERE_CALLS = JsonCalls(
    "<|START_ACTION|>", "<|END_ACTION|>", "tool_name", "parameters", "tool_call_id", "list"
)
COHERE_2 = Layout(
    "cohere-2",
    COHERE_CALLS,
    COHERE_THINK,
    dropped=("<|START_TEXT|>", "<|END_TEXT|>"),
    answer=('"<|START_TEXT|>"', '"<|END_TEXT|>"'),
    tokens=(
        *("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|CHATBOT_TOKEN|>"),
        *("<|USER_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|START_THINKING|>", "<|END_THINKING|>"),
        *("<|START_TEXT|>", "<|END_TEXT|>", "<|START_ACTION|>", "<|END_ACTION|>"),
        *("<|START_TOOL_RESULT|>", "<|END_TOOL_RESULT|>"),
    ),
)
COMMAND_R7B = Layout(
    "command-r7b",
    COHERE_CALLS,
    COHERE_THINK,
    dropped=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
    answer=('"<|START_RESPONSE|>"', '"<|END_RESPONSE|>"'),
    tokens=(
        *("<|START_THINKING|>", "<|END_THINKING|>", "<|START_RESPONSE|>"),
        *("<|END_RESPONSE|>", "<|START_ACTION|>", "<|END_ACTION|>"),
    ),
)
COMMAND_R = Layout(
    "command-r",
    JsonCalls(
        "Action:\n```json\n",
        "```",
        "tool_name",
        "parameters",
        framing="list",
        end_is_text=True,
    ),
    tokens=("Action:\n```json", "```", "<|CHATBOT_TOKEN|>", "<|END_OF_TURN_TOKEN|>"),
)
GIGACHAT_3_1 = Layout("gigachat-3.1", JsonCalls("<|function_call|>"), tokens=("<|function_call|>",))
GIGACHAT_3 = Layout(
    "gigachat-3",
    JsonCalls("<|message_sep|>\n\nfunction call<|role_sep|>\n"),
    tokens=("<|message_sep|>\n\n", "<|role_sep|>\n"),
)
KIMI_K2 = Layout(
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
)
MISTRAL_V11 = Layout(
    "mistral-v11",
    NamedCalls("[TOOL_CALLS]", "{name}[CALL_ID]{id}[ARGS]"),
    tokens=("[TOOL_CALLS]", "[CALL_ID]", "[ARGS]"),
)
MISTRAL_V13 = Layout(
    "mistral-v13",
    NamedCalls("[TOOL_CALLS]", "{name}[ARGS]"),
    MISTRAL_THINK,
    tokens=("[THINK]", "[/THINK]", "[TOOL_CALLS]", "[ARGS]"),
)
MISTRAL_V3 = Layout(
    "mistral-v3",
    JsonCalls("[TOOL_CALLS]", id="id", framing="list"),
    tokens=("[TOOL_CALLS]",),
)
NEMOTRON_2 = Layout(
    "nemotron-2",
    JsonCalls("<TOOLCALL>", "</TOOLCALL>", framing="list"),
    tokens=("<SPECIAL_11>", "</think>", "<TOOLCALL>", "</TOOLCALL>"),
    thinking=THINK,
)
DEEPSEEK_R1 = Layout(
    "deepseek-r1",
    NamedCalls(
        "<｜tool▁call▁begin｜>",
        "function<｜tool▁sep｜>{name}\n```json\n",
        "```<｜tool▁call▁end｜>",
        _DEEPSEEK_SECTION,
    ),
    THINK,
    tokens=("<think>", "</think>", *_DEEPSEEK_TOKENS, "<｜tool▁sep｜>"),
)
DEEPSEEK_V3_1 = Layout(
    "deepseek-v3.1",
    NamedCalls(
        "<｜tool▁call▁begin｜>",
        "{name}<｜tool▁sep｜>",
        "<｜tool▁call▁end｜>",
        _DEEPSEEK_SECTION,
    ),
    THINK,
    tokens=("<think>", "</think>", *_DEEPSEEK_TOKENS, "<｜tool▁sep｜>"),
)
SOLAR = Layout(
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
)
FUNCTIONARY_3_1 = Layout(
    "functionary-3.1",
    NamedCalls("<function=", "{name}>", "</function>"),
    tokens=("<|eot_id|>", "<|eom_id|>", "<function=", ">", "</function>"),
)
FUNCTIONARY_3_2 = Layout(
    "functionary-3.2",
    read=read_recipients,
    calls=RecipientCalls(),
    answer=(r'"all\n"', ""),
    opening=OPENING,
    tokens=(">>>all",),
)
FIREFUNCTION = Layout("firefunction", JsonCalls("functools", framing="list"), tokens=("functools",))
APRIEL = Layout(
    "apriel",
    JsonCalls("<tool_calls>", "</tool_calls>", framing="list"),
    tokens=("<tool_calls>", "</tool_calls>"),
)
MINIMAX_M1 = Layout(
    "minimax-m1",
    JsonCalls("<tool_calls>", "</tool_calls>", framing="lines"),
    tokens=("<tool_calls>", "</tool_calls>"),
)
GRANITE_3 = Layout(
    "granite-3",
    JsonCalls("<|tool_call|>", framing="list"),
    dropped=("<response>", "</response>"),
    tokens=("<|tool_call|>", "<response>", "</response>"),
)
LLAMA_3 = Layout("llama-3", read=read_bare, calls=CALLS)
