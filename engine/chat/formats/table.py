"""Which layout a chat template has, found by texts that only such templates hold."""

from __future__ import annotations

import functools

from msgspec.structs import replace

from gguf_serve.engine.chat.formats import json_layouts as json
from gguf_serve.engine.chat.formats import tagged_layouts as tagged
from gguf_serve.engine.chat.layout import Layout

# (texts that the template's source holds, its layout); the first row that fits counts.
ROWS: tuple[tuple[tuple[str, ...], Layout], ...] = (
    (("<|channel|>analysis<|message|>",), json.HARMONY),
    (("<atem:function_calls>",), tagged.MUSE),
    (("<|open|>", "<|close|>", "<|sep|>"), tagged.KIMI_K3),
    (("]<]minimax[>[",), tagged.MINIMAX_M3),
    (("<minimax:tool_call>",), tagged.MINIMAX_M2),
    (("<|tool_call>", "<|channel>"), tagged.GEMMA_4),
    (("<|tool_call_start|>",), tagged.LFM_2_5),
    (("List of tools: [", "keep_past_thinking"), tagged.LFM_2_5),
    (("<|tool_list_start|>",), tagged.LFM_2),
    (("<|tools_prefix|>",), json.APERTUS),
    (("[BEGIN FINAL RESPONSE]", "<|begin_assistant|>"), json.APRIEL_THINKER),
    (("<seed:tool_call>",), tagged.SEED),
    (("<|START_ACTION|>", "<|START_TEXT|>"), json.COHERE_2),
    (("<|START_ACTION|>",), json.COMMAND_R7B),
    (("Action:", "```json", '"tool_name"'), json.COMMAND_R),
    (("<tool_calls{}>", "':opensource'"), tagged.HUNYUAN_3),
    (("<arg_key>", "<|role_end|>"), tagged.LING_3),
    (("<arg_key>", "</assistant>"), tagged.LAGUNA),
    (("<arg_key>",), tagged.GLM_4_5),
    (("<|function_call|>",), json.GIGACHAT_3_1),
    (("<|message_sep|>", "<|role_sep|>"), json.GIGACHAT_3),
    (("<|tool_calls_section_begin|>",), json.KIMI_K2),
    (("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"), json.MISTRAL_V11),
    (("[TOOL_CALLS]", "[ARGS]"), json.MISTRAL_V13),
    (("[TOOL_CALLS]",), json.MISTRAL_V3),
    (("<TOOLCALL>",), json.NEMOTRON_2),
    (("｜DSML｜", "function_calls"), tagged.DEEPSEEK_V3_2),
    (("｜DSML｜",), tagged.DEEPSEEK_V4),
    (("<｜tool▁call▁begin｜>", "```json"), json.DEEPSEEK_R1),
    (("<｜tool▁call▁begin｜>",), json.DEEPSEEK_V3_1),
    (("<|tool_call:begin|>",), json.SOLAR),
    (("<function name=", "<param name="), tagged.MINICPM),
    (("<function=", "<parameter=", "</think>"), tagged.QWEN_3_5),
    (("<function=", "<parameter="), tagged.QWEN_3_CODER),
    (("<function=",), json.FUNCTIONARY_3_1),
    ((">>>all",), json.FUNCTIONARY_3_2),
    ((" functools[",), json.FIREFUNCTION),
    (("<tool_calls>[",), json.APRIEL),
    (("<tool_calls>",), json.MINIMAX_M1),
    (("<|tool_call|>",), json.GRANITE_3),
    (('"parameters": dictionary of argument name',), json.LLAMA_3),
    (("<tool_call>",), json.HERMES),
)


@functools.lru_cache(maxsize=64)
def layout_of(source: str) -> Layout:
    """The layout of a template; ``<think>`` is known wherever its end is mentioned."""
    layout = next(
        (layout for texts, layout in ROWS if all(text in source for text in texts)), json.FALLBACK
    )
    if layout.thinking is None and "</think>" in source:
        return replace(layout, thinking=json.THINK, tokens=("<think>", "</think>", *layout.tokens))
    return layout
